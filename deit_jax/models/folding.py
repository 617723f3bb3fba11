"""A frozen RegNet with BatchNorm folded into its convolutions."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from deit_jax.models.regnet import BATCH_NORM_EPSILON, RegNet


def fold_batch_norm(model: nn.Module, variables: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The same network for evaluation only, with a bias in place of every BatchNorm: fewer reads, fewer values to keep.

    A model without BatchNorm comes back as it is. Equal to the original up to the order of float operations; computed in float32.
    """
    if not isinstance(model, RegNet) or model.folded:
        return model, variables
    params = flax.traverse_util.flatten_dict(variables["params"])
    statistics = flax.traverse_util.flatten_dict(variables["batch_stats"])
    folded = {}
    for path, leaf in params.items():
        *where, layer, _ = path
        if layer == "bn":
            continue
        norm = (*where, "bn")
        if layer == "conv" and (*norm, "mean") in statistics:
            scale = params[(*norm, "scale")] * jax.lax.rsqrt(
                jnp.asarray(statistics[(*norm, "var")]) + BATCH_NORM_EPSILON
            )
            folded[path] = leaf * scale  # HWIO: the last axis is the output's
            folded[(*where, "bias")] = params[(*norm, "bias")] - statistics[(*norm, "mean")] * scale
        else:
            folded[path] = leaf
    return model.clone(folded=True), {"params": flax.traverse_util.unflatten_dict(folded)}
