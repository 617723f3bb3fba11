"""DeiT in JAX/Flax: vision transformers with a distillation token."""

from deit_jax.models import ModelOutput, create_model, list_models
from deit_jax.version import __version__

__all__ = ["ModelOutput", "__version__", "create_model", "list_models"]
