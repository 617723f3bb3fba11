"""Weights of other frameworks, in and out. The one room that knows foreign names."""

from deit_jax.weights.errors import MisfitError, WeightsError
from deit_jax.weights.hub import list_pretrained, load_pretrained
from deit_jax.weights.loading import load_weights
from deit_jax.weights.preprocessing import Preprocessing
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
