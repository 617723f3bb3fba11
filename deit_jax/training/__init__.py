"""Training: loop.py is the training loop, step.py one training step."""
