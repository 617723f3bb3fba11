"""AdamW and SGD with weight decay by parameter name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import optax

from deit_jax.training.schedules import Schedule


def parameter_name(path: tuple[Any, ...]) -> str:
    """The "/"-joined name of a leaf, from its tree path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def parameter_names(params: Any) -> list[str]:
    """The names of all leaves, in the order of the tree."""
    return [parameter_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def decayed(params: Any, no_decay: Sequence[str]) -> Any:
    """A tree of bools like `params`: True where no regular expression of `no_decay` is found in the leaf's name."""
    patterns = [re.compile(pattern) for pattern in no_decay]
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any(pattern.search(parameter_name(path)) for pattern in patterns), params
    )


def trained(params: Any, trainable: Sequence[str]) -> Any:
    """A tree of bools like `params`: True where a regular expression of `trainable` is found in the leaf's name."""
    patterns = [re.compile(pattern) for pattern in trainable]
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(pattern.search(parameter_name(path)) for pattern in patterns), params
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
    """The optimizer of a configuration's `optimizer` section. Its state is as large as two ("adamw") or one ("sgd") copies of the
    parameters.

    "adamw" is PyTorch's: decay times the learning rate, decoupled from the moments, epsilon outside the root. "sgd" is PyTorch's
    with Nesterov momentum: decay is added to the gradient. Gradients are first scaled to a global norm of at most `clip_norm`.
    A parameter in whose name no regular expression of `trainable` is found gets no update, no decay and no memory. Raises
    ValueError for another name.
    """

    def mask(params: Any) -> Any:
        return decayed(params, no_decay)

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
        return optimizer  # its state without a further level, as it always was: checkpoints are made of it

    def groups(params: Any) -> Any:
        return jax.tree.map(lambda train: "trained" if train else "frozen", trained(params, trainable))

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, groups)
