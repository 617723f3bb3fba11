"""BatchNorm folded into the convolutions in front of it."""

from __future__ import annotations

from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp


def fold_batch_norm(variables: dict[str, Any], epsilon: float) -> dict[str, Any]:
    """Variables for evaluation only, with a bias in place of every BatchNorm: fewer reads, fewer values to keep.

    variables: {"params", "batch_stats"} in which `bn` is beside the `conv` whose output it normalises. Equal to the original
    up to the order of float operations; computed in float32.
    """
    params = flax.traverse_util.flatten_dict(variables["params"])
    statistics = flax.traverse_util.flatten_dict(variables["batch_stats"])
    folded = {}
    for path, leaf in params.items():
        *where, layer, _ = path
        if layer == "bn":
            continue
        norm = (*where, "bn")
        if layer == "conv" and (*norm, "mean") in statistics:
            scale = params[(*norm, "scale")] * jax.lax.rsqrt(jnp.asarray(statistics[(*norm, "var")]) + epsilon)
            folded[path] = leaf * scale  # HWIO: the last axis is the output's
            folded[(*where, "bias")] = params[(*norm, "bias")] - statistics[(*norm, "mean")] * scale
        else:
            folded[path] = leaf
    return {"params": flax.traverse_util.unflatten_dict(folded)}
