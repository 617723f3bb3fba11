"""The fused kernels for TPU against attention written out, in interpret mode; and that they compile for TPUs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deit_jax.aot.compiling import compile_for, topology_devices
from deit_jax.aot.topologies import find_topology
from deit_jax.models.pallas_attention import Shape, attend, is_supported
from deit_jax.parallel.mesh import make_mesh

SIZES = {"B": 12, "S": 6, "Ti": 3}  # heads of 64 channels


def plain(product, bias, num_heads):
    """softmax(q k' / sqrt(d)) v, head by head."""
    q, k, v = np.split(np.arange(product.shape[-1]).reshape(3, num_heads, -1), 3)
    qkv = product + bias
    parts = []
    for head in range(num_heads):
        of_q, of_k, of_v = (qkv[..., rows[0, head]] for rows in (q, k, v))
        scores = jnp.einsum("bqd,bkd->bqk", of_q, of_k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores / of_q.shape[-1] ** 0.5, axis=-1).astype(of_v.dtype)
        parts.append(jnp.einsum("bqk,bkd->bqd", weights, of_v))
    return jnp.concatenate(parts, axis=-1)


def arguments(batch, tokens, num_heads, head_dim, dtype="float32"):
    rng, width = np.random.default_rng(tokens), num_heads * head_dim
    shapes = (batch, tokens, 3 * width), (3 * width,), (batch, tokens, width)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def value_and_gradients(function, product, bias, cotangent):
    def run(*args):
        value, pull = jax.vjp(function, *args[:2])
        return value, *pull(args[2])

    return [np.asarray(x, np.float32) for x in jax.jit(run)(product, bias, cotangent)]


def relative_errors(found, expected):
    return [
        float(np.linalg.norm(one - other) / np.linalg.norm(other)) for one, other in zip(found, expected, strict=True)
    ]


def compared(batch, tokens, num_heads, head_dim=64, **options):
    """Errors of the kernels in float32, in bfloat16, and of plain attention in bfloat16; against plain attention in float32."""
    kernel = functools.partial(attend, num_heads=num_heads, interpret=True, **options)
    reference = functools.partial(plain, num_heads=num_heads)
    exact, rounded = (arguments(batch, tokens, num_heads, head_dim, dtype) for dtype in ("float32", "bfloat16"))
    expected = value_and_gradients(reference, *exact)
    same = value_and_gradients(reference, *(x.astype(jnp.float32) for x in rounded))  # of the rounded arguments
    return (
        relative_errors(value_and_gradients(kernel, *exact), expected),
        relative_errors(value_and_gradients(kernel, *rounded), same),
        relative_errors(value_and_gradients(reference, *rounded), same),
    )


def assert_as_accurate(exact, rounded, of_plain):
    assert max(exact) < 2e-6, exact
    assert all(one < 1.2 * other for one, other in zip(rounded, of_plain, strict=True)), (rounded, of_plain)


@pytest.mark.parametrize(
    ("batch", "tokens", "num_heads", "head_dim"),
    [(2, 21, 3, 64), (3, 10, 5, 32), (1, 6, 1, 128), (1, 263, 4, 64)],
)
def test_values_and_gradients_equal_plain_attention(batch, tokens, num_heads, head_dim):
    assert_as_accurate(*compared(batch, tokens, num_heads, head_dim))


@pytest.mark.long
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens", [197, 198, 577, 578])
def test_the_sizes_of_deit(size, tokens):
    assert_as_accurate(*compared(2, tokens, SIZES[size]))


def test_each_device_computes_its_own_rows():
    mesh = make_mesh(jax.devices()[:4], fsdp=2)
    rows, whole = NamedSharding(mesh, PartitionSpec(mesh.axis_names)), NamedSharding(mesh, PartitionSpec())
    given = arguments(8, 12, 2, 64)
    placed = jax.device_put(given, [rows, whole, rows])
    kernel = functools.partial(attend, num_heads=2, mesh=mesh, interpret=True)
    found = value_and_gradients(kernel, *placed)
    assert max(relative_errors(found, value_and_gradients(functools.partial(plain, num_heads=2), *given))) < 2e-6


def test_large_scores_neither_overflow_nor_vanish():
    product, bias, cotangent = arguments(1, 20, 2, 64)
    given = product * 40, bias, cotangent
    kernel = functools.partial(attend, num_heads=2, interpret=True)
    found = value_and_gradients(kernel, *given)
    assert all(np.isfinite(x).all() for x in found)
    assert max(relative_errors(found, value_and_gradients(functools.partial(plain, num_heads=2), *given))) < 1e-4


def test_which_heads_are_supported():
    assert [is_supported(*sizes) for sizes in ((12, 768), (3, 192), (2, 64), (1, 128), (8, 128))] == [True] * 5
    assert [is_supported(*sizes) for sizes in ((2, 192), (4, 32), (1, 256), (3, 64))] == [False] * 4
    assert Shape(197, 192, 3).groups == ((0, 128), (128, 64))


def compiled(topology, tokens, num_heads, dtype="bfloat16"):
    """The program of value and gradients on each device's four images; a kernel of only two takes less on-chip memory."""
    pytest.importorskip("libtpu", reason="libtpu, the compiler for TPUs, is not installed")
    topology = find_topology(topology)
    mesh = make_mesh(topology_devices(topology))
    shardings = [NamedSharding(mesh, PartitionSpec(axes)) for axes in (mesh.axis_names, None, mesh.axis_names)]
    given = [
        jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding)
        for x, sharding in zip(arguments(4 * mesh.size, tokens, num_heads, 64), shardings, strict=True)
    ]

    def run(product, bias, cotangent):
        value, pull = jax.vjp(lambda *args: attend(*args, num_heads, mesh), product, bias)
        return value, pull(cotangent)

    return compile_for(topology, jax.jit(run), *given).executable.as_text()


@pytest.mark.compiler
def test_scores_stay_in_a_core():
    text = compiled("v5e-4", 197, 3)
    assert text.count("tpu_custom_call") >= 2 and "197,197" not in text and "198,198" not in text
    assert text.count(" all-reduce(") + text.count(" all-reduce-start(") == 1  # of the bias


@pytest.mark.long
@pytest.mark.parametrize("topology", ["v4-8", "v5e-4", "v5p-8", "v6e-4"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens", [197, 578])
def test_what_auto_takes_compiles(topology, size, tokens):
    heads = SIZES[size]
    fits = Shape(tokens, 64 * heads, heads).fewest_bytes(jnp.bfloat16) <= 16 << 20
    if topology == "v4-8" and not fits:
        with pytest.raises(Exception, match="memory space vmem"):
            compiled(topology, tokens, heads)
        assert (size, tokens) == ("B", 578)
    else:
        compiled(topology, tokens, heads)
