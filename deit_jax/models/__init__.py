"""Flax Linen modules of the networks, independent of training and data."""

from deit_jax.models.protocol import ModelOutput
from deit_jax.models.registry import create_model, list_models, native_image_size, register_model

__all__ = ["ModelOutput", "create_model", "list_models", "native_image_size", "register_model"]
