"""DeiT in JAX/Flax: vision transformers with a distillation token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deit_jax.config_losses import register_loss
from deit_jax.data.registry import register_source
from deit_jax.models import ModelOutput, create_model, list_models, register_model
from deit_jax.version import __version__
from deit_jax.weights import Preprocessing, WeightsError, list_pretrained, load_pretrained, load_weights, save_weights

if TYPE_CHECKING:
    from deit_jax.inference.classifier import Classifier

__all__ = [
    "Classifier",
    "ModelOutput",
    "Preprocessing",
    "WeightsError",
    "__version__",
    "create_model",
    "list_models",
    "list_pretrained",
    "load_pretrained",
    "load_weights",
    "register_loss",
    "register_model",
    "register_source",
    "save_weights",
]


def __getattr__(name: str) -> Any:
    """Imports `Classifier` on first use, because its imports are slow."""
    if name == "Classifier":
        from deit_jax.inference.classifier import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
