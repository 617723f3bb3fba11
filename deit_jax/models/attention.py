"""Multi-head self-attention, and which implementation of it computes on which devices.

xla          plain JAX
dot_product  `jax.nn.dot_product_attention` without a fused kernel
pallas       this project's fused kernel for TPU (pallas_attention.py)
cudnn        cuDNN's fused kernel for NVIDIA GPUs
auto         a fused kernel where it is known to compile and to be reproducible, else xla: see `choose`

All are equal up to the order and rounding of float operations. Neither fused kernel has run on a device yet.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import Mesh

from deit_jax.models import pallas_attention
from deit_jax.models.layers import Dense, Dropout, embedding_init, product, softmax

ATTENTIONS = ("auto", "xla", "dot_product", "pallas", "cudnn")
FUSED = {"pallas": "tpu", "cudnn": "gpu"}  # the fused kernels and their platforms
_FEWEST_TOKENS = 64  # for fewer, most of a fused kernel's tile of 128 scores is padding
_MOST_TOKENS = 1025  # the largest number that pallas_attention.py was compiled for
# Bytes of VMEM of a core, by a part of JAX's device kind: chips that the kernels were compiled for.
_VMEM = {
    "v4": 16 << 20, "v5 lite": 128 << 20, "v5e": 128 << 20, "v5p": 64 << 20, "v5": 64 << 20, "v6 lite": 128 << 20,
    "v6e": 128 << 20,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Fused:
    """A fused kernel, for batches that are split over all axes of `mesh`. interpret: of "pallas", for tests on CPU."""

    name: str  # "pallas" or "cudnn"
    mesh: Mesh | None
    interpret: bool = False


class Choice(NamedTuple):
    """An implementation and the reason for it, one line."""

    name: str
    why: str


def choose(requested: str, mesh: Mesh, *, tokens: int, width: int, num_heads: int, dtype: Any) -> Choice:
    """Returns what computes `requested`, one of `ATTENTIONS`, on the devices of `mesh`, which may be abstract.

    Where a requested fused kernel cannot compute, that is "xla", and the reason says why. "auto" also needs that the kernel was
    compiled for the chip and, because resuming is exact, that its backward pass is deterministic.
    """
    if requested in ("xla", "dot_product"):
        return Choice(requested, "as configured")
    device = mesh.devices.flat[0]
    shape = pallas_attention.Shape(tokens, width, num_heads)
    name = requested
    if requested == "auto":
        name = next((kernel for kernel, platform in FUSED.items() if platform == device.platform), "xla")
        if name == "xla":
            return Choice("xla", f"no fused kernel computes on {device.platform}s")
    problem = _problem(name, device, shape, dtype)
    if problem is None and requested == "auto":
        problem = _risk(name, device, shape, dtype)
    if problem is not None:
        return Choice("xla", problem)
    if requested != "auto":
        return Choice(name, "as configured")
    what = "this project's fused kernel" if name == "pallas" else "cuDNN's fused kernel"
    return Choice(name, f"{what}, in {jnp.dtype(dtype).name} with {tokens} tokens on {device.device_kind}")


def _problem(name: str, device: Any, shape: pallas_attention.Shape, dtype: Any) -> str | None:
    """Why a fused kernel cannot compute; None if it can."""
    if device.platform != FUSED[name]:
        hardware = "TPUs" if name == "pallas" else "NVIDIA GPUs"
        return f"{name} computes on {hardware} only, and the devices are {device.platform}s"
    if name == "cudnn":
        if dtype not in (jnp.bfloat16, jnp.float16):
            return f"cudnn computes in bfloat16 only, and compute_dtype is {jnp.dtype(dtype).name}"
        if shape.head_dim % 8 or shape.head_dim > 128:
            return (
                f"cudnn computes heads of at most 128 channels, in steps of 8, and this model's have {shape.head_dim}"
            )
        return None
    if not pallas_attention.is_supported(shape.num_heads, shape.width):
        return f"pallas computes heads of 16, 32, 64 or 128 channels, and this model's have {shape.head_dim}"
    capacity = _vmem(device)
    if capacity is not None and (needed := shape.fewest_bytes(dtype)) > capacity:
        return (
            f"pallas needs about {needed / 2**20:.1f} MiB of on-chip memory for {shape.tokens} tokens of {shape.width} channels, "
            f"and a core of {device.device_kind} has {capacity / 2**20:.0f}"
        )
    return None


def _risk(name: str, device: Any, shape: pallas_attention.Shape, dtype: Any) -> str | None:
    """Why "auto" does not take a fused kernel that could compute; None if it does."""
    if shape.tokens < _FEWEST_TOKENS:
        return f"a fused kernel gains nothing with {shape.tokens} tokens"
    if name == "cudnn":
        if float(getattr(device, "compute_capability", None) or 0) < 8:
            return f"cudnn needs a GPU of compute capability 8.0 or newer, and that of {device.device_kind} is older or unknown"
        if not _is_deterministic():
            return (
                "cudnn's backward pass is not reproducible unless XLA_FLAGS contains "
                "--xla_gpu_exclude_nondeterministic_ops=true; attention=cudnn takes it as it is"
            )
        return None
    if dtype != jnp.bfloat16:
        return f"the fused kernel is for bfloat16, and compute_dtype is {jnp.dtype(dtype).name}"
    if _vmem(device) is None:
        return f"the fused kernel was never compiled for {device.device_kind}"
    if shape.tokens > _MOST_TOKENS:
        return f"the fused kernel was never compiled for {shape.tokens} tokens"
    return None


def _vmem(device: Any) -> int | None:
    kind = device.device_kind
    return next((size for name, size in _VMEM.items() if name in kind), None) if kind.startswith("TPU") else None


def _is_deterministic() -> bool:
    """Whether XLA was asked for kernels that give the same bits each time; that includes cuDNN's backward pass."""
    flags = r"--xla_gpu_(exclude_nondeterministic|deterministic)_ops(=(true|1))?(\s|$)"
    return re.search(flags, os.environ.get("XLA_FLAGS", "").lower()) is not None


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection; rows q, k, v, each heads-major, as in timm. Softmax in float32.

    [B, N, D] to [B, Q, D]: the first `queries` tokens attend to all N.

    implementation: "xla" or "dot_product", or a `Fused` kernel. "pallas" and "cudnn", of a model that is not on a mesh, are for
    one device, and "xla" where that is of another platform; so is "auto". A fused kernel computes blocks of all queries, and
    batches that its devices divide; the others are computed as by "xla".
    """

    num_heads: int
    dropout_rate: float
    drop_dtype: str
    implementation: str | Fused
    dtype: Any
    gradient_dtype: str = "compute"

    @nn.compact
    def __call__(self, x: jax.Array, *, queries: int | None, train: bool, positions: jax.Array | None) -> jax.Array:
        width = x.shape[-1]
        dense = functools.partial(Dense, dtype=self.dtype, gradients=self.gradient_dtype)
        fused = None if queries is not None or self.is_initializing() else self._fused(x.shape[0])
        if fused is not None and fused.name == "pallas":
            product, bias = _Projection(3 * width, self.dtype, self.gradient_dtype, name="qkv")(x)
            x = pallas_attention.attend(product, bias, self.num_heads, fused.mesh, fused.interpret)
        else:
            qkv = dense(3 * width, name="qkv")(x)
            if fused is not None:
                x = _cudnn(qkv, self.num_heads)
            elif self.implementation == "dot_product":
                q, k, v = rearrange(qkv, "b n (three h d) -> three b n h d", three=3, h=self.num_heads)
                scale = (width // self.num_heads) ** -0.5
                x = jax.nn.dot_product_attention(q[:, :queries], k, v, scale=scale, implementation="xla")
                x = rearrange(x, "b n h d -> b n (h d)")
            else:
                x = _xla(qkv, self.num_heads, queries, self.dtype)
        x = dense(width, name="proj")(x)
        return Dropout(self.dropout_rate, division=self.drop_dtype)(x, train=train, positions=positions)

    @nn.nowrap
    def _fused(self, count: int) -> Fused | None:
        """Returns the fused kernel for a batch of this size; None: there is none."""
        fused = self.implementation
        if isinstance(fused, Fused):
            return fused if fused.mesh is None or count % fused.mesh.size == 0 else None
        return Fused(fused, None) if fused in FUSED and FUSED[fused] == jax.default_backend() else None


class _Projection(nn.Module):
    """A dense layer, with the parameters of `nn.Dense`, that returns its product and its bias before they are added."""

    features: int
    dtype: Any
    gradient_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", embedding_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.astype(self.dtype)
        multiplied = product(x, kernel) if self.gradient_dtype == "float32" else jnp.dot(x, kernel.astype(self.dtype))
        return multiplied, bias.astype(self.dtype)


def _xla(qkv: jax.Array, num_heads: int, queries: int | None, dtype: Any) -> jax.Array:
    """Attention of qkv [B, N, 3 D] by plain JAX, to [B, Q, D]."""
    # With heads before tokens, each product is one batched matrix product, the fastest layout on CPU.
    # The gradient of unstack is one concatenation; that of iteration is a sum of three padded arrays.
    q, k, v = jnp.unstack(rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=num_heads))
    q = q[:, :, :queries] * q.shape[-1] ** -0.5
    weights = softmax(jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32), dtype)
    return rearrange(jnp.einsum("bhqk,bhkd->bhqd", weights, v), "b h n d -> b n (h d)")


def _cudnn(qkv: jax.Array, num_heads: int) -> jax.Array:
    """cuDNN's attention of qkv [B, N, 3 D] in bfloat16 or float16, to [B, N, D].

    The tokens are padded to a `safe_length`. The true lengths are always given, because without its padding mask cuDNN returns
    NaN for some lengths.
    """
    count, tokens, _ = qkv.shape
    padded = jnp.pad(qkv, ((0, 0), (0, safe_length(tokens) - tokens), (0, 0)))
    q, k, v = rearrange(padded, "b n (three h d) -> three b n h d", three=3, h=num_heads)
    lengths = jnp.full((count,), tokens, jnp.int32)
    x = jax.nn.dot_product_attention(
        q, k, v, scale=q.shape[-1] ** -0.5, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )  # fmt: skip
    return rearrange(x[:, :tokens], "b n h d -> b n (h d)")


def safe_length(tokens: int) -> int:
    """Returns a number of tokens, at least the given one, for which cuDNN's backward pass is correct.

    JAX 0.10 refuses odd numbers (it counts a missing bias as one), and cuDNN returns NaN for some rows of sequences of 64 modulo
    128 tokens on Hopper.
    """
    rounded = -(-tokens // 8) * 8
    return rounded + 8 if rounded % 128 == 64 else rounded
