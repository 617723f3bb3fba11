"""This package's own names for a model's tensors, for models that no other framework has: "params/blocks_0/norm1/scale".

The layout "flax": every variable under its path, values as they are. weights/timm.py does the same for the models that timm has.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.models.protocol import fixed_image_size, initial_variables
from deit_jax.weights import timm
from deit_jax.weights.errors import MisfitError, WeightsError, listed
from deit_jax.weights.files import Tensors
from deit_jax.weights.layout import Layout, Translated, compare
from deit_jax.weights.values import unusable_values

_UNSIZED = 224  # pixels at which a model that takes any size is traced


def to_variables(tensors: Tensors) -> dict[str, Any]:
    """Variables, float32 NumPy arrays, from tensors under these names."""
    arrays = {name: np.ascontiguousarray(np.asarray(tensor, np.float32)) for name, tensor in tensors.items()}
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


def from_variables(variables: Any, dtype: Any = np.float32) -> Tensors:
    """Tensors under these names from variables, as `dtype`; None keeps each leaf's."""
    flat = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    return {name: np.asarray(leaf, dtype) for name, leaf in flat.items()}


def expected_tensors(model: nn.Module) -> Tensors:
    """The names of the model's tensors, with stand-ins of their shapes that take no memory."""
    side = fixed_image_size(model) or _UNSIZED
    shapes = jax.eval_shape(
        functools.partial(initial_variables, model),
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, side, side, 3), np.float32),
    )
    return from_variables(jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), dict(shapes)))


def head_names(model: nn.Module) -> tuple[str, ...]:
    """What the names of the classifiers' tensors begin with, each with "/" at its end: "params/head/".

    A classifier is a module with a tensor whose shape depends on the number of classes, or that tensor alone where the
    module holds other modules too, as the model itself does.
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
    """The variables of `model` from tensors under these names, and the heads that start from scratch, "/"-joined.

    where: what an error calls them. heads, seed: as of `load_weights`. Raises WeightsError or MisfitError.
    """
    expected = expected_tensors(model)
    renewed: set[str] = set()
    if heads != "keep":
        names = head_names(model)
        for name, like in expected.items():
            head = next((head for head in names if f"{name}/".startswith(head)), None)
            if head and (heads == "reset" or name not in tensors or tensors[name].shape != like.shape):
                renewed.add(head)
    tensors = {name: tensor for name, tensor in tensors.items() if not f"{name}/".startswith(tuple(renewed))}
    if found := unusable_values(tensors):
        raise WeightsError(f"{where} holds values that make every answer NaN: {found}; take another checkpoint")
    if renewed:
        side = fixed_image_size(model) or _UNSIZED
        image = jnp.zeros((1, side, side, 3), jnp.float32)
        fresh = from_variables(jax.jit(functools.partial(initial_variables, model))(jax.random.key(seed), image))
        tensors |= {name: tensor for name, tensor in fresh.items() if f"{name}/".startswith(tuple(renewed))}
    missing, unexpected, misshapen = compare(tensors, expected)
    if missing or unexpected or misshapen:
        kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        problems = "; ".join(f"{kind} {listed(names, 3)}" for kind, names in kinds if names)
        raise MisfitError(f"{where} does not fit the model: {problems}", missing, unexpected, misshapen)
    return to_variables(tensors), tuple(sorted(head.partition("/")[2].rstrip("/") for head in renewed))


def count_classes(tensors: Tensors, model: nn.Module) -> int | None:
    """How many classes tensors of this model, under these names, tell apart; None if none of them is its classifier's."""
    few, more = (expected_tensors(model.clone(num_classes=count)) for count in (2, 3))
    for name in sorted(few):
        one, other = few[name].shape, more[name].shape if name in more else ()
        axes = [axis for axis, (a, b) in enumerate(zip(one, other, strict=False)) if (a, b) == (2, 3)]
        if axes and name in tensors and tensors[name].ndim == len(one):
            return int(tensors[name].shape[axes[0]])
    return None


def _to_timm(tensors: Tensors) -> Translated:
    return timm.from_variables(to_variables(tensors)), []


def _from_timm(tensors: Tensors) -> Tensors:
    return from_variables(timm.to_variables(tensors))


LAYOUT = Layout("flax", "flax", r"(params|batch_stats)/", _to_timm, _from_timm)
