"""GELU and softmax, written so that little is kept for their derivatives."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x * Phi(x), of float[...], in x's type; computed in float32.

    By erf, as PyTorch has it. `jax.nn.gelu(approximate=False)` is written with erfc, which XLA expands into a large expression:
    on TPU it then keeps the result for the backward pass instead of computing it again from x (docs/performance.md).
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def softmax(scores: jax.Array, dtype: Any) -> jax.Array:
    """The softmax over the last axis of float32[..., N], rounded to `dtype`; its derivative is that of the rounded values.

    Autodiff would keep the float32 values, twice the bytes of the largest array of a transformer's block.
    """
    return jax.nn.softmax(scores, axis=-1).astype(dtype)


def _softmax_forward(scores: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    weights = softmax(scores, dtype)
    return weights, weights


def _softmax_backward(dtype: Any, weights: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    wide = jnp.promote_types(dtype, jnp.float32)
    weights = weights.astype(wide)
    product = weights * gradient.astype(wide)
    return (product - weights * jnp.sum(product, axis=-1, keepdims=True),)


softmax.defvjp(_softmax_forward, _softmax_backward)
