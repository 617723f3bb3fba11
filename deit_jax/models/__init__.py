"""The networks: Flax Linen modules that know nothing of training or data."""

from deit_jax.models.output import ModelOutput
from deit_jax.models.registry import create_model, list_models, native_image_size, register_model

__all__ = ["ModelOutput", "create_model", "list_models", "native_image_size", "register_model"]
