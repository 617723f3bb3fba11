"""A frozen RegNetY's block, written so that TPU's compiler keeps the largest arrays on the chip.

The result equals `regnet.Block`'s up to the order of float additions. Two things differ, and each lets the compiler compute a
small operation inside the convolution that follows:

* The compiler's grouped convolution returns [B, H, W, groups, C / groups], and a reshape to [B, H, W, C] between it and the next
  convolution ends the fusion: ReLU and squeeze-and-excitation gate become a pass of their own over main memory. Here they
  multiply that array, and the next convolution is a product over its two last axes.
* In a block that halves the resolution, `conv1` writes an array of four times the pixels. With each group's 3x3 convolution on
  its own, the compiler computes `conv1` inside it, for few groups.

docs/performance.md has the compiler's figures.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from deit_jax.models.grouped_conv import convolve

FUSED = "fused"
_MOST_SEPARATE = 4  # groups that are convolved separately; with 11, the next larger number, compiling takes minutes


class FoldedConv(nn.Module):
    """The parameters of a `regnet.ConvBatchNorm` with BatchNorm folded, in `dtype`: kernel [k, k, I, F] and bias [F]."""

    kernel_size: int
    inputs: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        kernel = _Kernel((self.kernel_size, self.kernel_size, self.inputs, self.features), name="conv")()
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return kernel.astype(self.dtype), bias.astype(self.dtype)


class _Kernel(nn.Module):
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> jax.Array:
        kernel: jax.Array = self.param("kernel", nn.initializers.lecun_normal(), self.shape)
        return kernel


def convolved(
    x: jax.Array, first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array], stride: int, groups: int
) -> list[jax.Array]:
    """Returns [B, H, W, C] convolved by `first` (1x1) and by `second` (in groups), each with its bias and a ReLU.

    first, second: kernel and bias. The result is in one or several parts, whose channels follow each other.
    """
    count = groups if stride > 1 and groups <= _MOST_SEPARATE else 1
    parts = []
    for kernels in zip(*(jnp.split(array, count, axis=-1) for array in (*first, *second)), strict=True):
        kernel1, bias1, kernel2, bias2 = kernels
        y = nn.relu(convolve(x, kernel1, 1, 1) + bias1)
        parts.append(nn.relu(convolve(y, kernel2, stride, groups // count) + bias2))
    return parts


def gated_product(
    parts: list[jax.Array], gate: jax.Array, third: tuple[jax.Array, jax.Array], groups: int
) -> jax.Array:
    """Returns the 1x1 convolution by `third` of what `convolved` returns times its gate [B, 1, 1, C]."""
    kernel, bias = third
    if len(parts) > 1:
        return convolve(jnp.concatenate(parts, axis=-1) * gate, kernel, 1, 1) + bias
    x, gate = (rearrange(array, "b h w (g c) -> b h w g c", g=groups) for array in (parts[0], gate))
    return jnp.einsum("bhwgc,gco->bhwo", x * gate, rearrange(kernel, "1 1 (g c) o -> g c o", g=groups)) + bias
