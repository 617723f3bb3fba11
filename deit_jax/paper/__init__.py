"""The paper: its tables and figures as data, and the rows as commands of this project (run.py --list)."""
