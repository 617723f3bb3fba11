"""Recorded answers of a teacher: their kinds (kinds.py), what they depend on (fingerprint.py) and their files (files.py)."""
