"""Fused self-attention of short sequences for TPU: scores, softmax and their gradients stay in a core's own memory (VMEM).

The kernels read queries, keys and values where the dense layer wrote them, in one array [B, N, 3 D], and write the gradient in
the same layout: nothing is split, transposed or padded in main memory, and nothing but that array is kept for the backward pass.
A program computes one image. Heads narrower than the 128 lanes of a register are computed in groups that fill it: the other
heads' lanes of the queries are set to zero, and the matrix unit takes as long for 128 lanes as for one head's.

Written for and compiled for TPU; no TPU was at hand (docs/performance.md). On CPU only tests compute it, in interpret mode.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec

_LANES = 128
_MOST_UNROLLED = 256  # tokens; above, a loop over groups of heads bounds the size of the program
_DEFAULT_VMEM = 16 * 2**20  # bytes that the compiler gives to a kernel on its own


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of one image's attention, and how its heads are grouped."""

    tokens: int
    width: int
    num_heads: int

    @property
    def head_dim(self) -> int:
        """Lanes of one head."""
        return self.width // self.num_heads

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """(first lane, number of lanes) of each group of heads; the last one may be narrower."""
        return tuple((start, min(_LANES, self.width - start)) for start in range(0, self.width, _LANES))

    def fewest_bytes(self, dtype: Any) -> int:
        """The bytes of VMEM without which the backward kernel does not compile, estimated."""
        return self._bytes(dtype, scores=3)

    def most_bytes(self, dtype: Any) -> int:
        """An upper estimate of the bytes of VMEM that a kernel takes."""
        return self._bytes(dtype, scores=8)

    def _bytes(self, dtype: Any, scores: int) -> int:
        rows, columns = (-(-self.tokens // size) * size for size in (16, _LANES))
        lanes = sum(
            -(-parts * self.width // _LANES) * _LANES for parts in (3, 1, 3)
        )  # qkv, the output's gradient, qkv's
        # The blocks are held twice: one is computed while another one is copied.
        return 2 * rows * lanes * jnp.dtype(dtype).itemsize + scores * rows * columns * 4


def is_supported(num_heads: int, width: int) -> bool:
    """Whether the kernels can compute heads of this width: those that fill a register's 128 lanes exactly."""
    head_dim, rest = divmod(width, num_heads)
    return rest == 0 and head_dim >= 16 and _LANES % head_dim == 0


def attend(
    product: jax.Array, bias: jax.Array, num_heads: int, mesh: Mesh | None = None, interpret: bool = False
) -> jax.Array:
    """Returns softmax(q k' / sqrt(head_dim)) v of all heads, [B, N, D], for [q, k, v] = product + bias.

    product: [B, N, 3 D], split over all axes of `mesh`, whose devices divide B; None: one device. bias: [3 D]. It is an argument
    of its own because the backward kernel sums its gradient while the values are at hand. interpret: for tests on CPU.
    """
    return _attend(product, bias, num_heads, mesh, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _attend(product: jax.Array, bias: jax.Array, num_heads: int, mesh: Mesh | None, interpret: bool) -> jax.Array:
    return _attend_forward(product, bias, num_heads, mesh, interpret)[0]


def _attend_forward(
    product: jax.Array, bias: jax.Array, num_heads: int, mesh: Mesh | None, interpret: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    qkv = product + bias
    forward = functools.partial(_forward, num_heads=num_heads, interpret=interpret)
    return _per_device(forward, mesh, 1, 1)(qkv), (qkv, bias)


def _attend_backward(
    num_heads: int, mesh: Mesh | None, interpret: bool, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    qkv, bias = residuals

    def backward(qkv: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        of_qkv, of_bias = _backward(qkv, gradient, num_heads, interpret)
        return of_qkv, jnp.sum(of_bias, axis=0).astype(bias.dtype)

    of_qkv, of_bias = _per_device(backward, mesh, 2, 2)(qkv, gradient)
    # One row for each device, summed like the gradients of other parameters: in their dtype, with one exchange for all.
    return of_qkv, jax.lax.reduce(of_bias, jnp.zeros((), bias.dtype), jax.lax.add, (0,))


_attend.defvjp(_attend_forward, _attend_backward)


def _per_device(function: Any, mesh: Mesh | None, inputs: int, outputs: int) -> Any:
    """Applies `function` to each device's own rows; the compiler cannot split a kernel."""
    if mesh is None:
        return function
    rows = PartitionSpec(mesh.axis_names)
    out = rows if outputs == 1 else (rows,) * outputs
    # The checker of replication does not see inside a kernel.
    return jax.shard_map(function, mesh=mesh, in_specs=(rows,) * inputs, out_specs=out, check_vma=False)


def _forward(qkv: jax.Array, num_heads: int, interpret: bool) -> jax.Array:
    count, tokens, width = qkv.shape
    shape = Shape(tokens, width // 3, num_heads)
    return pl.pallas_call(
        functools.partial(_forward_kernel, shape=shape),
        grid=(count,),
        in_specs=[_image(tokens, width)],
        out_specs=_image(tokens, shape.width),
        out_shape=jax.ShapeDtypeStruct((count, tokens, shape.width), qkv.dtype),
        interpret=interpret,
        name="attention_forward",
        **_compiler_arguments(shape, count, qkv.dtype, products=2, arrays=4),
    )(qkv)


def _backward(qkv: jax.Array, gradient: jax.Array, num_heads: int, interpret: bool) -> tuple[jax.Array, jax.Array]:
    """Returns the gradient of qkv, and its sum over the tokens, float32[B, 1, 3 D], from values that are not rounded yet."""
    count, tokens, width = qkv.shape
    shape = Shape(tokens, width // 3, num_heads)
    return pl.pallas_call(
        functools.partial(_backward_kernel, shape=shape),
        grid=(count,),
        in_specs=[_image(tokens, width), _image(tokens, shape.width)],
        out_specs=[_image(tokens, width), _image(1, width)],
        out_shape=[
            jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
            jax.ShapeDtypeStruct((count, 1, width), jnp.float32),
        ],
        interpret=interpret,
        name="attention_backward",
        **_compiler_arguments(shape, count, qkv.dtype, products=5, arrays=7),
    )(qkv, gradient)


def _image(rows: int, lanes: int) -> pl.BlockSpec:
    """One image of an array [B, rows, lanes] for each program; blocks of whole rows and lanes need no padding."""
    return pl.BlockSpec((None, rows, lanes), lambda image: (image, 0, 0))


def _compiler_arguments(shape: Shape, count: int, dtype: Any, *, products: int, arrays: int) -> dict[str, Any]:
    scores = count * shape.num_heads * shape.tokens**2
    vmem = shape.most_bytes(dtype)
    return {
        "compiler_params": pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=vmem if vmem > _DEFAULT_VMEM else None
        ),
        "cost_estimate": pl.CostEstimate(
            flops=2 * products * scores * shape.head_dim,
            transcendentals=scores,
            bytes_accessed=arrays * count * shape.tokens * shape.width * jnp.dtype(dtype).itemsize,
        ),
    }


def _forward_kernel(qkv: Any, out: Any, *, shape: Shape) -> None:
    def group(start: Any, lanes: int) -> None:
        q, k, v = (qkv[:, pl.ds(part * shape.width + start, lanes)] for part in range(3))
        result = None
        for keep in _heads(shape, lanes):
            exponentials, total = _exponentials(_only(keep, _scaled(q, shape)), k)
            of_head = _dot(exponentials.astype(v.dtype), v, 1, 0) / total
            result = _merged(keep, of_head, result)
        assert result is not None
        out[:, pl.ds(start, lanes)] = result.astype(out.dtype)

    _for_each_group(shape, group)


def _backward_kernel(qkv: Any, gradient: Any, of_qkv: Any, of_bias: Any, *, shape: Shape) -> None:
    def group(start: Any, lanes: int) -> None:
        q, k, v = (qkv[:, pl.ds(part * shape.width + start, lanes)] for part in range(3))
        q, g = _scaled(q, shape), gradient[:, pl.ds(start, lanes)]
        results: tuple[Any, ...] = (None, None, None)
        for keep in _heads(shape, lanes):
            exponentials, total = _exponentials(_only(keep, q), k)
            weights = exponentials / total
            of_weights = _dot(_only(keep, g), v, 1, 1)
            of_weights -= jnp.sum(of_weights * weights, axis=-1, keepdims=True)
            of_scores = (weights * of_weights).astype(q.dtype)
            of_head = (
                _dot(of_scores, k, 1, 0),
                _dot(of_scores, q, 0, 0),
                _dot(weights.astype(v.dtype), g, 0, 0),
            )
            results = tuple(_merged(keep, *pair) for pair in zip(of_head, results, strict=True))
        of_q, of_k, of_v = results
        for part, result in enumerate((of_q * shape.head_dim**-0.5, of_k, of_v)):
            where = pl.ds(part * shape.width + start, lanes)
            of_qkv[:, where] = result.astype(of_qkv.dtype)
            of_bias[:, where] = jnp.sum(result, axis=0, keepdims=True)

    _for_each_group(shape, group)


def _for_each_group(shape: Shape, group: Any) -> None:
    """Calls group(first lane, number of lanes) for each group of heads."""
    if shape.tokens <= _MOST_UNROLLED or shape.width % _LANES:
        for start, lanes in shape.groups:
            group(start, lanes)
    else:

        def body(index: Any, carry: None) -> None:
            group(pl.multiple_of(index * _LANES, _LANES), _LANES)

        jax.lax.fori_loop(0, len(shape.groups), body, None)


def _heads(shape: Shape, lanes: int) -> list[Any]:
    """For each head of a group of `lanes` lanes, which lanes are its own: bool[tokens, lanes]; None: all."""
    if lanes == shape.head_dim:
        return [None]
    lane = jax.lax.broadcasted_iota(jnp.int32, (shape.tokens, lanes), 1)
    return [(lane >= start) & (lane < start + shape.head_dim) for start in range(0, lanes, shape.head_dim)]


def _only(keep: Any, x: jax.Array) -> jax.Array:
    return x if keep is None else jnp.where(keep, x, jnp.zeros_like(x))


def _merged(keep: Any, of_head: jax.Array, others: Any) -> jax.Array:
    return of_head if others is None else jnp.where(keep, of_head, others)


def _scaled(q: jax.Array, shape: Shape) -> jax.Array:
    return (q.astype(jnp.float32) * shape.head_dim**-0.5).astype(q.dtype)


def _exponentials(q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the softmax's numerators float32[N, N] and denominators float32[N, 1] of one head."""
    scores = _dot(q, k, 1, 1)
    exponentials = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return exponentials, jnp.sum(exponentials, axis=-1, keepdims=True)


def _dot(a: jax.Array, b: jax.Array, axis_of_a: int, axis_of_b: int) -> jax.Array:
    """Returns the matrix product over the given axes, in float32."""
    return jax.lax.dot_general(a, b, (((axis_of_a,), (axis_of_b,)), ((), ())), preferred_element_type=jnp.float32)
