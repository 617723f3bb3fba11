"""Grouped convolution in the implementation that is fast on each platform."""

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

# Channels of a pack of narrow groups; wider groups are not packed. A pack of n groups does n times the necessary work, but
# narrow convolutions are slow: 16 to 32 channels take the least processor time. XLA (jaxlib 0.10.2) computes a convolution of 16
# channels on all cores, and one of 24 to 64 on a single core.
_PACK_CHANNELS = 16


@dataclasses.dataclass(frozen=True)
class PerDevice:
    """An implementation: "native" on each device's own rows of a batch that is split over all axes of `mesh`.

    Otherwise XLA gathers the batch and every device convolves all of it (openxla/xla#47945, open in November 2026), though not
    on TPU.
    """

    mesh: Mesh


class GroupedConv(nn.Module):
    """Convolution without bias, zero-padded on both sides as in PyTorch: [B, H, W, C] to [B, H/s, W/s, F].

    The parameter is `kernel`, float32[k, k, C / groups, F], as in `nn.Conv`.

    implementation: "native" is XLA's grouped convolution. "packed" is for CPU, where XLA's runs on one core: packs of groups
      become dense convolutions with block-diagonal kernels, a 1x1 convolution a matrix product, and an image's three channels
      are padded to four. "auto" is `implementation_for` the default device's platform. Or a `PerDevice`. All are equal up to the
      order of float additions.
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
        of_rows = functools.partial(convolve, stride=self.stride, groups=self.groups)
        if isinstance(implementation, PerDevice):
            mesh = implementation.mesh
            if self.groups > 1 and x.shape[0] % mesh.size == 0:  # initialisation has one row, which cannot be split
                rows, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
                of_rows = jax.shard_map(of_rows, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
            return of_rows(x, kernel)
        if implementation == "native":
            return of_rows(x, kernel)
        if self.groups > 1:
            return _convolve_packs(x, kernel, self.stride, self.groups)
        if self.kernel_size == 1:  # a matrix product is faster on CPU, forward and backward
            return jnp.einsum("bhwi,io->bhwo", x[:, :: self.stride, :: self.stride], kernel[0, 0])
        return convolve(*_fill_channels(x, kernel), self.stride, 1)


def implementation_for(platform: str) -> str:
    """Returns the implementation for a platform: "cpu", "gpu" or "tpu"."""
    return "packed" if platform == "cpu" else "native"


def implementation_on(mesh: Mesh) -> str | PerDevice:
    """Returns the implementation for batches split over `mesh`, whose devices may be abstract."""
    platform = mesh.devices.flat[0].platform
    return PerDevice(mesh) if platform == "gpu" and mesh.size > 1 else implementation_for(platform)


def block_diagonal(kernel: jax.Array, groups: int) -> jax.Array:
    """Returns the dense kernel [k, k, groups * I, F] that is equivalent to the grouped kernel [k, k, I, F]."""
    kernel = rearrange(kernel, "h w i (g o) -> h w i g o", g=groups)
    dense = jnp.einsum("hwigo,gf->hwfigo", kernel, jnp.eye(groups, dtype=kernel.dtype))
    return rearrange(dense, "h w f i g o -> h w (f i) (g o)")


def _convolve_packs(x: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
    """Convolves packs of groups separately; the last pack may be narrower."""
    size = min(groups, max(1, _PACK_CHANNELS * groups // x.shape[-1]))
    starts = range(size, groups, size)
    parts = jnp.split(x, [start * x.shape[-1] // groups for start in starts], axis=-1)
    kernels = jnp.split(kernel, [start * kernel.shape[-1] // groups for start in starts], axis=-1)
    packs = zip(parts, kernels, strict=True)
    outputs = [convolve(part, block_diagonal(k, part.shape[-1] // k.shape[2]), stride, 1) for part, k in packs]
    return jnp.concatenate(outputs, axis=-1)


def _fill_channels(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Pads an image's three channels to four, which halves the time of XLA's convolution on CPU."""
    missing = max(0, 4 - x.shape[-1])
    return jnp.pad(x, [(0, 0)] * 3 + [(0, missing)]), jnp.pad(kernel, [(0, 0), (0, 0), (0, missing), (0, 0)])


def convolve(x: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
    """Returns XLA's own convolution of [B, H, W, C] with a kernel [k, k, C / groups, F], padded as in `GroupedConv`."""
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
