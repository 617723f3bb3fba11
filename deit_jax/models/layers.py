"""Initializers, dense layer, GELU, softmax, LayerNorm, Dropout and patch dropout of DeiT.

GELU to LayerNorm keep few arrays for gradients.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

EPSILON = 1e-6  # LayerNorm's in the released code; PyTorch's default is 1e-5, transformers' DeiT uses 1e-12
RNG_NAME = "dropout"  # the one random stream that models use: apply(..., rngs={"dropout": key})
DIVISIONS = ("compute", "float32")

# timm's trunc_normal_(std=.02) truncates at -2 and 2, a hundred standard deviations: effectively a plain normal.
embedding_init = nn.initializers.normal(0.02)

GRADIENTS = ("compute", "float32")


def Dense(features: int, *, dtype: Any, name: str, gradients: str = "compute") -> nn.Dense:
    """Returns the dense layer of a transformer, which computes in `dtype`.

    gradients: "float32": the kernel's gradient is added in float32, also over devices (`product`); "compute": it is rounded to
    `dtype` on each device and then added.
    """
    if gradients == "compute":
        return nn.Dense(features, kernel_init=embedding_init, dtype=dtype, name=name)

    def cast(x: jax.Array, kernel: jax.Array, bias: jax.Array, *, dtype: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        return x.astype(dtype), kernel, bias.astype(dtype)

    def multiply(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
        return product(x, kernel)

    fields: dict[str, Any] = {"promote_dtype": cast, "dot_general": multiply}
    return nn.Dense(features, kernel_init=embedding_init, dtype=dtype, name=name, **fields)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns x @ kernel, [..., I] and float32[I, F], computed in x's dtype; the kernel's gradient is added in float32.

    The cast of a kernel to bfloat16 has a gradient in bfloat16, which is what devices would exchange.
    """
    return jnp.dot(x, kernel.astype(x.dtype))


def _product_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x, kernel), (x, kernel)


def _product_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))
    of_kernel = jax.lax.dot_general(x, gradient, ((rows, rows), ((), ())), preferred_element_type=kernel.dtype)
    return jnp.dot(gradient, kernel.astype(x.dtype).T), of_kernel


product.defvjp(_product_forward, _product_backward)


def uniform_init(fan_in: int) -> nn.initializers.Initializer:
    """Returns PyTorch's default initializer of dense layers and convolutions: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def gelu(x: jax.Array) -> jax.Array:
    """Returns the exact GELU, x * Phi(x), of float[...] in x's dtype; computed in float32.

    Uses erf, as PyTorch does. XLA expands the erfc of `jax.nn.gelu(approximate=False)` into a large expression, and on TPU keeps
    its result for the backward pass instead of recomputing it from x (docs/performance.md).
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def softmax(scores: jax.Array, dtype: Any) -> jax.Array:
    """Softmax over the last axis of float32[..., N], rounded to `dtype`; its gradient uses the rounded values.

    Autodiff would keep the float32 values, twice the bytes of the largest array of a transformer block.
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


class LayerNorm(nn.Module):
    """Normalises the last axis of x, float[..., D], then scales and shifts; parameters `scale` and `bias`, float32[D].

    Statistics are always float32. The variance is computed from centred values, because E[x^2] - E[x]^2 loses digits.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return normalize(x, scale, bias).astype(self.dtype)


# Autodiff keeps and recomputes several arrays of the size of x; this closed form keeps x and two numbers per row.
# Forward and backward of DeiT-Ti, 8 images on two CPU cores: 1.40 s and 357 MB of temporaries, with flax's nn.LayerNorm
# (use_fast_variance=False) 2.26 s and 386 MB; in bfloat16 2.41 s and 272 MB, with flax's 2.62 s and 300 MB (JAX 0.12).
@jax.custom_vjp
def normalize(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns (x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis, float32[..., D]."""
    return _normalize_forward(x, scale, bias)[0]


def _normalize_forward(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    centred = wide - mean
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + EPSILON)
    return centred * inverse * scale + bias, (x, mean, inverse, scale)


def _normalize_backward(
    residuals: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, mean, inverse, scale = residuals
    normal = (x.astype(jnp.float32) - mean) * inverse
    scaled = gradient * scale
    row = jnp.mean(scaled, axis=-1, keepdims=True) + normal * jnp.mean(scaled * normal, axis=-1, keepdims=True)
    rows = tuple(range(x.ndim - 1))
    return (inverse * (scaled - row)).astype(x.dtype), jnp.sum(gradient * normal, rows), jnp.sum(gradient, rows)


normalize.defvjp(_normalize_forward, _normalize_backward)


def image_keys(key: jax.Array, count: int, positions: jax.Array | None) -> jax.Array:
    """Returns a key for each of `count` images by its position in the global batch, int32[count]; None: 0 to count - 1."""
    positions = jnp.arange(count) if positions is None else positions
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)


class Dropout(nn.Module):
    """Inverted dropout of x, float[B, ...]; identity when `train` is False or `rate` is 0.

    Each image's mask is keyed by its position in the global batch, so that it does not depend on how the batch is split into
    microbatches (`train.accumulation_steps`), as it would with flax's nn.Dropout.

    rate: a number, or an array, which is not checked.
    whole_images: one draw per image: stochastic depth (Huang et al. 2016) as in timm's DropPath, where the kept branches are
      divided by the keep probability.
    division: the dtype in which kept values are divided by the keep probability, one of `DIVISIONS`. "float32" is exact to x's
      dtype, as in PyTorch; "compute", x's own dtype, also rounds the probability: 0.4 % at most in bfloat16.
    """

    rate: float | jax.Array
    whole_images: bool = False
    division: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rate, jax.Array) and not 0 <= self.rate < 1:
            raise ValueError(f"a dropout or stochastic depth rate must be at least 0 and below 1, not {self.rate}")

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, positions: jax.Array | None = None) -> jax.Array:
        """positions: int32[B], the images' positions in the global batch; None: 0 to B-1."""
        if not train or (not isinstance(self.rate, jax.Array) and self.rate == 0.0):
            return x
        keep = 1.0 - self.rate
        keys = image_keys(self.make_rng(RNG_NAME), x.shape[0], positions)
        shape = (1,) * (x.ndim - 1) if self.whole_images else x.shape[1:]
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, shape))(keys)
        dtype = x.dtype if self.division == "compute" else jnp.promote_types(x.dtype, jnp.float32)
        scaled = (x.astype(dtype) / jnp.asarray(keep, dtype)).astype(x.dtype)
        return jnp.where(kept, scaled, jnp.zeros_like(x))


class PatchDropout(nn.Module):
    """Keeps a random part of each image's patch tokens in training, as timm's PatchDropout; identity otherwise.

    float[B, prefix + N, D] to [B, prefix + K, D], K = `kept_patches(N, rate)`. The first `num_prefix_tokens` are always kept, and
    those that are kept stay in order. Each image's draw is keyed as in `Dropout`.
    """

    rate: float
    num_prefix_tokens: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, positions: jax.Array | None = None) -> jax.Array:
        """positions: as in `Dropout`."""
        if not train or self.rate == 1.0:
            return x
        prefix, count = self.num_prefix_tokens, x.shape[1] - self.num_prefix_tokens

        def draw(key: jax.Array) -> jax.Array:
            patches = jnp.sort(jnp.argsort(jax.random.bits(key, (count,)))[: kept_patches(count, self.rate)])
            return jnp.concatenate([jnp.arange(prefix), prefix + patches])

        kept = jax.vmap(draw)(image_keys(self.make_rng(RNG_NAME), x.shape[0], positions))
        # An exact product: TPU's compiler turns a gather, and the scatter of its gradient, into loops over rows.
        selection = jax.nn.one_hot(kept, x.shape[1], dtype=x.dtype)
        return jnp.einsum("bkn,bnd->bkd", selection, x, precision=jax.lax.Precision.HIGHEST)


def kept_patches(count: int, rate: float) -> int:
    """Returns how many of `count` patch tokens patch dropout keeps: as timm with a drop rate of 1 - `rate`, at least one."""
    return max(1, int(count * rate))
