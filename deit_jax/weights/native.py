"""This package's own tensor names, for models without a counterpart in another framework: "params/blocks_0/norm1/scale".

The layout "flax": each variable under its path, values unchanged. weights/timm.py is its counterpart for timm's models.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.models.protocol import initial_variables, input_size
from deit_jax.weights import timm
from deit_jax.weights.errors import WeightsError, heads_to_reset, require_match, unusable_values
from deit_jax.weights.files import Tensors
from deit_jax.weights.layout import Layout


def to_variables(tensors: Tensors) -> dict[str, Any]:
    """Converts tensors under these names to variables, float32 NumPy arrays."""
    arrays = {name: np.ascontiguousarray(np.asarray(tensor, np.float32)) for name, tensor in tensors.items()}
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


def from_variables(variables: Any, dtype: Any = np.float32) -> Tensors:
    """Converts variables to tensors under these names, as `dtype`; None keeps each leaf's."""
    flat = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    return {name: np.asarray(leaf, dtype) for name, leaf in flat.items()}


def expected_tensors(model: nn.Module) -> Tensors:
    """Returns the model's tensors under these names, as placeholders of the right shapes that take no memory."""
    return from_variables(timm.placeholders(model))


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Returns the prefixes of the classifiers' tensor names, each with a trailing "/": "params/head/".

    A classifier is a module with a tensor whose shape depends on the number of classes, or only that tensor if the module
    contains other modules too, as the model itself does.
    """
    few, more = (expected_tensors(model.clone(num_classes=count)) for count in (2, 3))
    modules = {name.rpartition("/")[0] for name in few}
    heads = set()
    for name in few:
        if name in more and few[name].shape == more[name].shape:
            continue
        module = name.rpartition("/")[0]
        alone = "/" not in module or any(other.startswith(f"{module}/") for other in modules)
        heads.add(f"{name if alone else module}/")
    return tuple(sorted(heads))


def fit(
    tensors: Tensors, model: nn.Module, where: str, heads: str, seed: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the variables of `model` from tensors under these names, and the reinitialised heads, "/"-joined.

    where: the source, for messages. heads, seed: as in `load_weights`. Raises WeightsError or MisfitError.
    """
    expected = expected_tensors(model)
    renewed = set() if heads == "keep" else heads_to_reset(tensors, expected, head_names(model), heads)
    tensors = {name: tensor for name, tensor in tensors.items() if not f"{name}/".startswith(tuple(renewed))}
    if found := unusable_values(tensors):
        raise WeightsError(f"{where} holds values that make every output NaN: {found}; use another checkpoint")
    if renewed:
        image = jnp.zeros((1, *input_size(model), 3), jnp.float32)
        fresh = from_variables(jax.jit(functools.partial(initial_variables, model))(jax.random.key(seed), image))
        tensors |= {name: tensor for name, tensor in fresh.items() if f"{name}/".startswith(tuple(renewed))}
    require_match(tensors, expected, f"{where} does not fit the model", 3)
    return to_variables(tensors), tuple(sorted(head.partition("/")[2].rstrip("/") for head in renewed))


def count_classes(tensors: Tensors, model: nn.Module) -> int | None:
    """Returns the number of classes of tensors of this model, under these names; None if there is no classifier."""
    few, more = (expected_tensors(model.clone(num_classes=count)) for count in (2, 3))
    for name in sorted(few):
        one, other = few[name].shape, more[name].shape if name in more else ()
        axes = [axis for axis, (a, b) in enumerate(zip(one, other, strict=False)) if (a, b) == (2, 3)]
        if axes and name in tensors and tensors[name].ndim == len(one):
            return int(tensors[name].shape[axes[0]])
    return None


LAYOUT = Layout(
    "flax",
    "flax",
    r"(params|batch_stats)/",
    lambda tensors: (timm.from_variables(to_variables(tensors)), []),
    lambda tensors: from_variables(timm.to_variables(tensors)),
)
