"""Reads and writes the files of a workdir: workdir.py. No other package opens them."""
