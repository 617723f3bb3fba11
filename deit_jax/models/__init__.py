"""The networks: Flax Linen modules that know nothing of training, data or devices."""

from deit_jax.models.output import ModelOutput
from deit_jax.models.registry import create_model, list_models, native_image_size

__all__ = ["ModelOutput", "create_model", "list_models", "native_image_size"]
