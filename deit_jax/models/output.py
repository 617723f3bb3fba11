"""What every classifier of this package returns, in training and in evaluation."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

FUSIONS = ("logits", "softmax", "class")


class ModelOutput(NamedTuple):
    """Logits, float32[B, K] each.

    logits: the answer of the whole model; with a distillation token, the late fusion of its two heads.
    class_logits: the head on the class token (of a convnet: the only head, equal to `logits`).
    distillation_logits: the head on the distillation token; None for a model without one.
    """

    logits: jax.Array
    class_logits: jax.Array
    distillation_logits: jax.Array | None


def fuse(class_logits: jax.Array, distillation_logits: jax.Array, fusion: str) -> jax.Array:
    """One answer from two heads, float32[B, K].

    "logits" is the mean of the logits, as in the released code and every port of it; "softmax" is the mean of the two softmax
    outputs (the paper, section 4, adds them: the same ranking), returned as its logarithm so that it can be used as logits;
    "class" is the class head alone, of a model whose other head was not taught.
    """
    if fusion == "logits":
        return (class_logits + distillation_logits) / 2
    if fusion == "softmax":
        return jnp.logaddexp(jax.nn.log_softmax(class_logits), jax.nn.log_softmax(distillation_logits)) - jnp.log(2.0)
    if fusion == "class":
        return class_logits
    raise ValueError(f"fusion={fusion!r} is not one of {', '.join(FUSIONS)}")
