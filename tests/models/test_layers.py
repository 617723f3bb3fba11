import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from deit_jax.models.layers import (
    RNG_NAME,
    Dense,
    Dropout,
    LayerNorm,
    PatchDropout,
    gelu,
    kept_patches,
    normalize,
    softmax,
)
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.sharding import split_rows


def test_gelu_is_exact_for_large_inputs():
    x = np.linspace(-12, 12, 481, dtype=np.float32)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(gelu(x), 0.5 * wide * (1 + erf(wide / 2**0.5)), rtol=1e-6, atol=5e-7)
    assert gelu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_softmax_saves_only_rounded_values(dtype):
    _, backward = jax.vjp(lambda scores: softmax(scores, dtype), jnp.ones((4, 8), jnp.float32))
    kept = jax.tree.leaves(backward)
    assert [(leaf.shape, leaf.dtype) for leaf in kept] == [((4, 8), dtype)]


def test_softmax_gradient_equals_autodiff():
    scores, weight = np.random.RandomState(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
    expected = jax.grad(lambda x: jnp.sum(weight * jax.nn.softmax(x, axis=-1)))(scores)
    found = jax.grad(lambda x: jnp.sum(weight * softmax(x, jnp.float32)))(scores)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    rough = jax.grad(lambda x: jnp.sum(weight * softmax(x, jnp.bfloat16).astype(jnp.float32)))(scores)
    np.testing.assert_allclose(rough, expected, atol=0.02)


def test_layer_norm_equals_flax():
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(3, 2, (2, 5, 16)), jnp.float32) for _ in range(2))
    flax = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False)
    variables = {"params": {name: jnp.asarray(rng.normal(size=16), jnp.float32) for name in ("scale", "bias")}}

    def value_of(module):
        return jax.jit(jax.value_and_grad(lambda v, x: jnp.sum(weight * module.apply(v, x)), argnums=(0, 1)))

    for ours, theirs in zip(
        jax.tree.leaves(value_of(LayerNorm())(variables, x)), jax.tree.leaves(value_of(flax)(variables, x)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_layer_norm_is_accurate_for_a_large_mean():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 64)), jnp.float32)
    ones, zeros = jnp.ones(64), jnp.zeros(64)
    np.testing.assert_allclose(normalize(x + 1000, ones, zeros), normalize(x, ones, zeros), atol=1e-3)


def test_layer_norm_of_bfloat16_has_float32_statistics():
    x = jnp.asarray(np.random.default_rng(0).normal(100, 1, (4, 256)), jnp.bfloat16)
    module = LayerNorm(dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), x)
    y = module.apply(variables, x)
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, atol=0.02)
    gradient = jax.grad(lambda x: jnp.sum(module.apply(variables, x).astype(jnp.float32) ** 3))(x)
    assert gradient.dtype == jnp.bfloat16 and bool(jnp.all(jnp.isfinite(gradient)))


@functools.partial(jax.jit, static_argnames=("rate", "whole_images"))
def dropped(x, rate, positions, whole_images, key):
    return Dropout(rate, whole_images=whole_images).apply({}, x, train=True, positions=positions, rngs={RNG_NAME: key})


def drop(x, rate, positions=None, *, whole_images, seed=0):
    return np.asarray(dropped(x.astype(np.float32), rate, positions, whole_images, jax.random.key(seed)))


both = pytest.mark.parametrize("whole_images", [False, True], ids=["dropout", "stochastic depth"])


@both
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_keep_rate_and_scale(whole_images, rate):
    shape = (4096, 2, 3) if whole_images else (64, 9, 8)
    x = drop(np.ones(shape, np.float32), rate, whole_images=whole_images)
    kept = x != 0
    np.testing.assert_allclose(x[kept], 1 / (1 - rate), rtol=1e-6)
    draws = kept[:, 0, 0] if whole_images else kept
    assert abs(draws.mean() - (1 - rate)) < 4 * (rate * (1 - rate) / draws.size) ** 0.5


def test_stochastic_depth_drops_whole_images():
    kept = drop(np.ones((64, 9, 8)), 0.5, whole_images=True) != 0
    assert (kept.all((1, 2)) | ~kept.any((1, 2))).all()
    assert kept.any()
    assert not kept.all()


def test_dropout_draws_per_element():
    kept = drop(np.ones((64, 9, 8)), 0.5, whole_images=False) != 0
    for axis in range(3):  # no two slices are equal
        slices = np.moveaxis(kept, axis, 0).reshape(kept.shape[axis], -1)
        assert len(np.unique(slices, axis=0)) == kept.shape[axis]


@both
def test_masks_depend_on_position_not_on_batch(whole_images):
    x = np.random.default_rng(0).normal(size=(8, 9, 8)).astype(np.float32)
    whole = drop(x, 0.5, whole_images=whole_images)
    np.testing.assert_array_equal(drop(x[4:], 0.5, np.arange(4, 8), whole_images=whole_images), whole[4:])
    order = np.array([6, 1, 3, 0])
    np.testing.assert_array_equal(drop(x[order], 0.5, order, whole_images=whole_images), whole[order])


@both
def test_positions_default_to_the_whole_batch(whole_images):
    x = np.ones((8, 9, 8), np.float32)
    positions = np.arange(8)
    np.testing.assert_array_equal(
        drop(x, 0.5, whole_images=whole_images), drop(x, 0.5, positions, whole_images=whole_images)
    )


@both
def test_masks_depend_on_key(whole_images):
    x = np.ones((64, 9, 8), np.float32)
    assert (drop(x, 0.5, whole_images=whole_images) != drop(x, 0.5, whole_images=whole_images, seed=1)).any()


@both
def test_identity_in_evaluation_and_at_rate_0(whole_images):
    x = jnp.ones((4, 3, 3))
    module = Dropout(0.5, whole_images=whole_images)
    assert module.apply({}, x, train=False) is x  # without an RNG key
    assert Dropout(0.0, whole_images=whole_images).apply({}, x, train=True) is x


@both
@pytest.mark.parametrize("division", ["compute", "float32"])
def test_bfloat16_division_by_the_exact_or_rounded_keep_probability(whole_images, division):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 9, 8)), jnp.bfloat16)
    for rate in (0.1 / 11, 0.0187, 0.1, 0.37):  # no quotient falls halfway between two bfloat16 values
        module = Dropout(rate, whole_images=whole_images, division=division)
        found = np.asarray(module.apply({}, x, train=True, rngs={RNG_NAME: jax.random.key(0)}))
        exact, rounded = (
            (np.asarray(x, np.float32) / np.float32(keep)).astype(jnp.bfloat16)
            for keep in (1 - rate, float(jnp.bfloat16(1 - rate)))
        )
        assert (exact != rounded).mean() > 0.05, rate
        kept = found != 0
        np.testing.assert_array_equal(found[kept], (rounded if division == "compute" else exact)[kept])


def test_division_has_no_effect_on_float32():
    x = jnp.ones((4, 3, 3))

    def program(division):
        module = Dropout(0.3, division=division)
        return str(
            jax.make_jaxpr(lambda x, key: module.apply({}, x, train=True, rngs={RNG_NAME: key}))(x, jax.random.key(0))
        )

    assert program("compute") == program("float32")


@both
def test_dropout_keeps_the_dtype(whole_images):
    x = jnp.ones((4, 3, 3), jnp.bfloat16)
    module = Dropout(0.5, whole_images=whole_images)
    assert module.apply({}, x, train=True, rngs={RNG_NAME: jax.random.key(0)}).dtype == jnp.bfloat16


# --- Patch dropout ---


@functools.partial(jax.jit, static_argnames=("rate", "prefix", "train"))
def patches_of(x, rate, prefix, key, positions=None, *, train=True):
    return PatchDropout(rate, prefix).apply({}, x, train=train, positions=positions, rngs={RNG_NAME: key})


def numbered(images, tokens):
    """Tokens that are their own numbers: float32[images, tokens, 2], the second value is the image's."""
    return np.stack(np.broadcast_arrays(np.arange(tokens), np.arange(images)[:, None]), axis=-1).astype(np.float32)


# timm's PatchDropout(1 - rate) keeps these.
@pytest.mark.parametrize(
    ("count", "rate", "kept"), [(196, 0.5, 98), (196, 0.75, 147), (196, 0.1, 19), (49, 0.5, 24), (4, 0.2, 1)]
)
def test_patch_dropout_keeps_as_many_tokens_as_timm(count, rate, kept):
    assert kept_patches(count, rate) == kept
    assert patches_of(numbered(3, count + 2), rate, 2, jax.random.key(0)).shape == (3, kept + 2, 2)


def test_patch_dropout_keeps_the_prefix_and_a_part_of_the_patches_in_order():
    x = np.asarray(patches_of(numbered(64, 18), 0.5, 2, jax.random.key(0)))
    np.testing.assert_array_equal(x[:, :, 1], np.broadcast_to(np.arange(64)[:, None], (64, 10)))
    np.testing.assert_array_equal(x[:, :2, 0], np.broadcast_to([0, 1], (64, 2)))
    kept = x[:, 2:, 0]
    assert (np.diff(kept) > 0).all() and kept.min() == 2 and kept.max() == 17
    counts = np.bincount(kept.astype(int).ravel(), minlength=18)[2:]
    assert abs(counts - 32).max() < 4 * 4  # binomial: 64 images, one half
    assert len(np.unique(kept, axis=0)) > 55


def test_kept_patches_depend_on_key_and_position_not_on_batch_or_devices():
    x, key = numbered(8, 17), jax.random.key(3)
    whole = np.asarray(patches_of(x, 0.25, 1, key))
    order = np.array([6, 1, 3])
    np.testing.assert_array_equal(patches_of(x[order], 0.25, 1, key, order), whole[order])
    np.testing.assert_array_equal(patches_of(x, 0.25, 1, key, np.arange(8)), whole)
    spread = jax.device_put(x, split_rows(make_mesh()))
    np.testing.assert_array_equal(patches_of(spread, 0.25, 1, key), whole)
    assert (patches_of(x, 0.25, 1, jax.random.key(4)) != whole).any()


def test_patch_dropout_is_the_identity_in_evaluation_and_at_rate_1():
    x = jnp.ones((2, 5, 3))
    assert PatchDropout(0.5, 1).apply({}, x, train=False) is x
    assert PatchDropout(1.0, 1).apply({}, x, train=True) is x  # without a key


def test_gradients_of_dropped_patches_are_0():
    x = numbered(4, 9)
    kept = np.asarray(patches_of(x, 0.5, 1, jax.random.key(0)))[:, :, 0].astype(int)
    gradient = jax.grad(lambda x: jnp.sum(patches_of(x, 0.5, 1, jax.random.key(0)) ** 2 / 2))(x)
    expected = np.zeros_like(x)
    for image, tokens in enumerate(kept):
        expected[image, tokens] = x[image, tokens]
    np.testing.assert_allclose(gradient, expected)


# --- Gradients in float32 ---


def test_dense_gradients_in_float32_are_not_rounded_and_everything_else_is_equal():
    rng = np.random.default_rng(0)
    x, gradient = (jnp.asarray(rng.normal(size=(6, 5, size)), jnp.bfloat16) for size in (16, 8))
    layers = {name: Dense(8, dtype=jnp.bfloat16, name="fc", gradients=name) for name in ("compute", "float32")}
    variables = layers["compute"].init(jax.random.key(0), x)
    found = {}
    for name, layer in layers.items():
        output, backward = jax.vjp(layer.apply, variables, x)
        found[name] = output, *backward(gradient)
    (output, rounded, of_x), (same, exact, of_same_x) = found["compute"], found["float32"]
    np.testing.assert_array_equal(output, same)
    np.testing.assert_allclose(*(np.asarray(it, np.float32) for it in (of_x, of_same_x)), rtol=2e-2, atol=2e-2)
    kernel, other = exact["params"]["kernel"], rounded["params"]["kernel"]
    assert kernel.dtype == other.dtype == jnp.float32
    expected = np.einsum("bni,bno->io", *(np.asarray(it, np.float64) for it in (x, gradient)))
    np.testing.assert_allclose(kernel, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(other, other.astype(jnp.bfloat16))  # that of "compute" has bfloat16's digits
    assert (kernel != kernel.astype(jnp.bfloat16)).mean() > 0.9
