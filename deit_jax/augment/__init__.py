"""Augmentation on the device: pure, batched, jit-able functions of (key, images, labels)."""
