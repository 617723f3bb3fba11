"""AdamW and SGD with weight decay by parameter name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import optax

from deit_jax.training.schedules import Schedule


def parameter_name(path: tuple[Any, ...]) -> str:
    """Returns the "/"-joined name of a leaf, from its tree path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def parameter_names(params: Any) -> list[str]:
    """Returns the names of all leaves, in tree order."""
    return [parameter_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def trained(params: Any, trainable: Sequence[str]) -> Any:
    """Returns a tree of bools like `params`: True if any regular expression of `trainable` is found in the leaf's name."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(re.search(pattern, parameter_name(path)) for pattern in trainable), params
    )


def make_optimizer(
    schedule: Schedule,
    *,
    name: str,
    betas: tuple[float, float],
    eps: float,
    momentum: float,
    weight_decay: float,
    no_decay: Sequence[str],
    trainable: Sequence[str],
    clip_norm: float | None,
) -> optax.GradientTransformation:
    """Builds the optimizer of a configuration's `optimizer` section.

    "adamw" is PyTorch's AdamW: decay times the learning rate, decoupled from the moments, epsilon outside the root. "sgd" is
    PyTorch's SGD with Nesterov momentum: decay is added to the gradient. The state has the size of two ("adamw") or one ("sgd")
    copies of the parameters. Gradients are first clipped to a global norm of `clip_norm`. Parameters whose name matches a regular
    expression of `no_decay` are not decayed; those that match none of `trainable` get no update, decay or state.

    Raises ValueError for another name.
    """

    def mask(params: Any) -> Any:
        return jax.tree.map(lambda matches: not matches, trained(params, no_decay))

    clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    decay = optax.add_decayed_weights(weight_decay, mask)
    if name == "adamw":
        rules = [optax.scale_by_adam(b1=betas[0], b2=betas[1], eps=eps), decay]
    elif name == "sgd":
        rules = [decay, optax.trace(decay=momentum, nesterov=True)]
    else:
        raise ValueError(f"optimizer {name!r} is neither 'adamw' nor 'sgd'")
    optimizer = optax.chain(*clip, *rules, optax.scale_by_learning_rate(schedule))
    if tuple(trainable) == (".*",):
        return optimizer  # not partitioned: existing checkpoints have this structure

    def groups(params: Any) -> Any:
        return jax.tree.map(lambda train: "trained" if train else "frozen", trained(params, trainable))

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, groups)
