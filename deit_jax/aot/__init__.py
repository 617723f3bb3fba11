"""The train step compiled ahead of time for devices that are not here: its memory, its collectives, its least time."""
