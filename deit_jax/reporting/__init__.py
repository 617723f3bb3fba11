"""Logs, pictures and HTML pages of a run."""
