"""Trained models in use: from images to class names, and files that run without this package."""
