"""The paper: its tables and figures as data, and every row of them as a command of this project (run.py --list)."""
