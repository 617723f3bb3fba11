"""The trainer: loop.py reads from top to bottom, step.py is one training step."""
