"""DeiT in JAX/Flax: vision transformers with a distillation token."""

from deit_jax.models import ModelOutput, create_model, list_models
from deit_jax.version import __version__
from deit_jax.weights import Preprocessing, WeightsError, list_pretrained, load_pretrained, load_weights, save_weights

__all__ = [
    "ModelOutput",
    "Preprocessing",
    "WeightsError",
    "__version__",
    "create_model",
    "list_models",
    "list_pretrained",
    "load_pretrained",
    "load_weights",
    "save_weights",
]
