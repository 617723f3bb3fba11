"""Grouped convolution, in the form that is fast where it runs."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import Mesh, PartitionSpec

IMPLEMENTATIONS = ("auto", "native", "packed")

# Channels of a pack of narrow groups; groups that are as wide go alone. A pack of n groups computes n times what is needed, but
# narrower convolutions have their own price: by processor time 16 to 32 is best. Of those XLA (jaxlib 0.10.2) computes one of 16
# channels on all cores and a wider one, up to 64, on one.
_PACK_CHANNELS = 16


@dataclasses.dataclass(frozen=True)
class PerDevice:
    """An implementation: "native" on each device's rows by themselves, the batch being split over all axes of `mesh`.

    Left to itself XLA gathers the batch and has every device convolve all of it (openxla/xla#47945, open in November 2026). The
    programs that TPU's compiler makes show no such gathers.
    """

    mesh: Mesh


class GroupedConv(nn.Module):
    """3x3 (or any size) convolution without bias, zero-padded on both sides as in PyTorch: [B, H, W, C] to [B, H/s, W/s, F].

    The parameter is `kernel`, float32[k, k, C / groups, F], as of `nn.Conv`. `implementation`: "native" is XLA's own grouped
    convolution; "packed" is for CPU, where that runs on one core: packs of groups are dense convolutions with block-diagonal
    kernels, a 1x1 convolution is a matrix product, and an image's three channels are filled up to four. "auto" is
    `implementation_for` the default device's platform; or `PerDevice`. Equal up to the order of float additions.
    """

    features: int
    kernel_size: int
    stride: int
    groups: int
    kernel_init: nn.initializers.Initializer
    implementation: str | PerDevice = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        x = x.astype(self.dtype)
        implementation = self.implementation
        if implementation == "auto":
            implementation = implementation_for(jax.default_backend())
        if isinstance(implementation, PerDevice):
            # Rows that do not divide among the devices (one, to initialise) are nobody's training step.
            split = self.groups > 1 and x.shape[0] % implementation.mesh.size == 0
            convolve = _split_over(implementation.mesh) if split else _convolve
            return convolve(x, kernel, self.stride, self.groups)
        if implementation == "native":
            return _convolve(x, kernel, self.stride, self.groups)
        if self.groups > 1:
            return _convolve_packs(x, kernel, self.stride, self.groups)
        if self.kernel_size == 1:
            return _project(x, kernel, self.stride)
        return _convolve(*_fill_channels(x, kernel), self.stride, 1)


def implementation_for(platform: str) -> str:
    """The implementation that suits a platform: "cpu", "gpu" or "tpu"."""
    return "packed" if platform == "cpu" else "native"


def implementation_on(mesh: Mesh) -> str | PerDevice:
    """The implementation that suits batches split over `mesh`, whose devices need not be here."""
    platform = mesh.devices.flat[0].platform
    return PerDevice(mesh) if platform == "gpu" and mesh.size > 1 else implementation_for(platform)


def block_diagonal(kernel: jax.Array, groups: int) -> jax.Array:
    """The dense kernel [k, k, groups * I, F] that computes what the grouped kernel [k, k, I, F] does."""
    kernel = rearrange(kernel, "h w i (g o) -> h w i g o", g=groups)
    dense = jnp.einsum("hwigo,gf->hwfigo", kernel, jnp.eye(groups, dtype=kernel.dtype))
    return rearrange(dense, "h w f i g o -> h w (f i) (g o)")


def _convolve_packs(x: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
    """The packs side by side; the last is narrower where the groups do not fill it."""
    size = min(groups, max(1, _PACK_CHANNELS * groups // x.shape[-1]))
    starts = range(size, groups, size)
    parts = jnp.split(x, [start * x.shape[-1] // groups for start in starts], axis=-1)
    kernels = jnp.split(kernel, [start * kernel.shape[-1] // groups for start in starts], axis=-1)
    packs = zip(parts, kernels, strict=True)
    outputs = [_convolve(part, block_diagonal(k, part.shape[-1] // k.shape[2]), stride, 1) for part, k in packs]
    return jnp.concatenate(outputs, axis=-1)


def _fill_channels(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Zero channels after an image's three: with four, XLA's convolution on CPU takes half the time."""
    missing = max(0, 4 - x.shape[-1])
    return jnp.pad(x, [(0, 0)] * 3 + [(0, missing)]), jnp.pad(kernel, [(0, 0), (0, 0), (0, missing), (0, 0)])


def _project(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """A 1x1 convolution as the matrix product it is: XLA's on CPU is faster, both ways."""
    return jnp.einsum("bhwi,io->bhwo", x[:, ::stride, ::stride], kernel[0, 0])


def _split_over(mesh: Mesh) -> Any:
    rows, whole = PartitionSpec(mesh.axis_names), PartitionSpec()

    def convolve(x: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
        local = functools.partial(_convolve, stride=stride, groups=groups)
        return jax.shard_map(local, mesh=mesh, in_specs=(rows, whole), out_specs=rows)(x, kernel)

    return convolve


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
    pad = (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        # PyTorch pads both sides; "SAME" would pad a strided convolution on the right and bottom only.
        padding=((pad, pad), (pad, pad)),
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
