"""Reads and writes weights of other frameworks. No other package knows their tensor names."""

from deit_jax.weights.cards import Preprocessing
from deit_jax.weights.errors import MisfitError, WeightsError
from deit_jax.weights.hub import list_pretrained, load_pretrained
from deit_jax.weights.loading import load_weights
from deit_jax.weights.saving import save_weights

__all__ = [
    "MisfitError",
    "Preprocessing",
    "WeightsError",
    "list_pretrained",
    "load_pretrained",
    "load_weights",
    "save_weights",
]
