"""Evaluation of trained models: accuracy, agreement, attention, speed."""
