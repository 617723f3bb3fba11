"""Ahead-of-time compilation of the train step for absent devices: its memory, collectives and minimum time."""
