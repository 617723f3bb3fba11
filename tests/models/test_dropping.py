import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.models.dropping import RNG_NAME, Dropout


@functools.partial(jax.jit, static_argnames=("rate", "whole_images"))
def dropped(x, rate, positions, whole_images, key):
    return Dropout(rate, whole_images=whole_images).apply({}, x, train=True, positions=positions, rngs={RNG_NAME: key})


def drop(x, rate, positions=None, *, whole_images, seed=0):
    return np.asarray(dropped(x.astype(np.float32), rate, positions, whole_images, jax.random.key(seed)))


both = pytest.mark.parametrize("whole_images", [False, True], ids=["dropout", "stochastic depth"])


@both
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_kept_share_and_its_scale(whole_images, rate):
    shape = (4096, 2, 3) if whole_images else (64, 9, 8)
    x = drop(np.ones(shape, np.float32), rate, whole_images=whole_images)
    kept = x != 0
    np.testing.assert_allclose(x[kept], 1 / (1 - rate), rtol=1e-6)
    draws = kept[:, 0, 0] if whole_images else kept
    assert abs(draws.mean() - (1 - rate)) < 4 * (rate * (1 - rate) / draws.size) ** 0.5


def test_stochastic_depth_keeps_or_drops_whole_images():
    kept = drop(np.ones((64, 9, 8)), 0.5, whole_images=True) != 0
    assert (kept.all((1, 2)) | ~kept.any((1, 2))).all()
    assert kept.any()
    assert not kept.all()


def test_dropout_draws_every_element():
    kept = drop(np.ones((64, 9, 8)), 0.5, whole_images=False) != 0
    for axis in range(3):  # no two slices alike
        slices = np.moveaxis(kept, axis, 0).reshape(kept.shape[axis], -1)
        assert len(np.unique(slices, axis=0)) == kept.shape[axis]


@both
def test_a_draw_depends_on_the_position_not_on_the_batch(whole_images):
    x = np.random.default_rng(0).normal(size=(8, 9, 8)).astype(np.float32)
    whole = drop(x, 0.5, whole_images=whole_images)
    np.testing.assert_array_equal(drop(x[4:], 0.5, np.arange(4, 8), whole_images=whole_images), whole[4:])
    order = np.array([6, 1, 3, 0])
    np.testing.assert_array_equal(drop(x[order], 0.5, order, whole_images=whole_images), whole[order])


@both
def test_positions_default_to_those_of_a_whole_batch(whole_images):
    x = np.ones((8, 9, 8), np.float32)
    positions = np.arange(8)
    np.testing.assert_array_equal(
        drop(x, 0.5, whole_images=whole_images), drop(x, 0.5, positions, whole_images=whole_images)
    )


@both
def test_another_key_is_another_draw(whole_images):
    x = np.ones((64, 9, 8), np.float32)
    assert (drop(x, 0.5, whole_images=whole_images) != drop(x, 0.5, whole_images=whole_images, seed=1)).any()


@both
def test_identity_in_evaluation_and_at_rate_0(whole_images):
    x = jnp.ones((4, 3, 3))
    module = Dropout(0.5, whole_images=whole_images)
    assert module.apply({}, x, train=False) is x  # and no key is asked for
    assert Dropout(0.0, whole_images=whole_images).apply({}, x, train=True) is x


@both
@pytest.mark.parametrize("division", ["compute", "float32"])
def test_bfloat16_is_divided_by_the_keep_probability_and_not_by_a_rounded_one(whole_images, division):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 9, 8)), jnp.bfloat16)
    for rate in (0.1 / 11, 0.0187, 0.1, 0.37):  # with which no quotient lies between two of bfloat16
        module = Dropout(rate, whole_images=whole_images, division=division)
        found = np.asarray(module.apply({}, x, train=True, rngs={RNG_NAME: jax.random.key(0)}))
        exact, rounded = (
            (np.asarray(x, np.float32) / np.float32(keep)).astype(jnp.bfloat16)
            for keep in (1 - rate, float(jnp.bfloat16(1 - rate)))
        )
        assert (exact != rounded).mean() > 0.05, rate
        kept = found != 0
        np.testing.assert_array_equal(found[kept], (rounded if division == "compute" else exact)[kept])


def test_float32_is_divided_alike_whatever_the_division():
    x = jnp.ones((4, 3, 3))

    def program(division):
        module = Dropout(0.3, division=division)
        return str(
            jax.make_jaxpr(lambda x, key: module.apply({}, x, train=True, rngs={RNG_NAME: key}))(x, jax.random.key(0))
        )

    assert program("compute") == program("float32")


@both
def test_the_type_of_the_input_is_kept(whole_images):
    x = jnp.ones((4, 3, 3), jnp.bfloat16)
    module = Dropout(0.5, whole_images=whole_images)
    assert module.apply({}, x, train=True, rngs={RNG_NAME: jax.random.key(0)}).dtype == jnp.bfloat16
