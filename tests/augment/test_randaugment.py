import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.augment.keys import fold_in_each
from deit_jax.augment.randaugment import OPERATIONS, SKIP, RandAugment, draw_operations

PAPER = "rand-m9-mstd0.5-inc1"


def draw(text, count=20_000):
    policy = RandAugment.parse(text)
    operations, arguments = jax.jit(draw_operations, static_argnums=1)(
        fold_in_each(jax.random.key(0), jnp.arange(count)), policy
    )
    return np.asarray(operations), np.asarray(arguments)


def test_parse_reads_every_section():
    assert RandAugment.parse(PAPER) == RandAugment(9, 2, 0.5, True, 0.5)
    assert RandAugment.parse("rand-n3-p0.25-inc0-m7") == RandAugment(7, 3, 0.0, False, 0.25)
    assert RandAugment.parse("rand-mstd.7") == RandAugment(10, 2, 0.7, False, 0.5)
    assert RandAugment.parse("rand-mstd101").magnitude_std == math.inf


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("augmix-m9", "expected rand-"),
        ("rand-m9-w0", "'w0'"),
        ("rand-m9-mstdfoo", "'mstdfoo'"),
        ("rand-m", "'m'"),
        ("rand-m9.5", "whole number"),
        ("rand-m9--n2", "''"),
        ("rand-n0", "at least 1"),
        ("rand-p1.5", "at most 1"),
        ("rand-m9-m8", "twice"),
        ("rand-m9 ", "'m9 '"),
    ],
)
def test_parse_refuses(text, said):
    with pytest.raises(ValueError, match=said) as error:
        RandAugment.parse(text)
    assert "\n" not in str(error.value)


def test_operations_are_uniform_and_half_are_skipped():
    operations, _ = draw(PAPER)
    assert operations.shape == (20_000, 2)
    assert abs(np.mean(operations == SKIP) - 0.5) < 0.01
    for layer in operations.T:
        shares = np.bincount(layer, minlength=16)[:15] / len(layer)
        np.testing.assert_allclose(shares, 0.5 / 15, atol=0.006)
    # With replacement: both layers may draw the same operation.
    applied = operations[np.all(operations != SKIP, axis=1)]
    assert abs(np.mean(applied[:, 0] == applied[:, 1]) - 1 / 15) < 0.015


def test_magnitudes_are_clipped_normal_with_random_sign():
    operations, arguments = draw(PAPER)
    degrees = arguments[operations == OPERATIONS.index("Rotate")]
    assert abs(np.mean(degrees > 0) - 0.5) < 0.06
    level = np.abs(degrees) / 3
    assert level.max() <= 10
    assert abs(np.mean(level == 10) - 0.0228) < 0.015
    assert abs(np.median(level) - 9) < 0.06
    assert abs(np.percentile(level, 15.87) - 8.5) < 0.08
    bits = arguments[operations == OPERATIONS.index("Posterize")]
    assert set(np.unique(bits)) == {0, 1, 2} or set(np.unique(bits)) == {0, 1}


def test_layers_and_probability_follow_the_notation():
    operations, arguments = draw("rand-m5-n3-p1", 2_000)
    assert operations.shape == arguments.shape == (2_000, 3)
    assert not np.any(operations == SKIP)
    assert set(np.unique(np.abs(arguments[operations == OPERATIONS.index("Rotate")]))) == {15}
    assert set(np.unique(arguments[operations == OPERATIONS.index("Solarize")])) == {128}
    _, uniform = draw("rand-m10-mstd101-p1", 4_000)
    operations, _ = draw("rand-m10-mstd101-p1", 4_000)
    level = np.abs(uniform[operations == OPERATIONS.index("Rotate")]) / 3
    assert abs(level.mean() - 5) < 0.5 and level.min() < 0.5 and level.max() > 9.5


def test_each_image_has_its_own_draw():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    images = jnp.asarray(np.broadcast_to(image, (32, 16, 16, 3)))
    augment = jax.jit(RandAugment.parse(PAPER), static_argnums=2)
    keys = fold_in_each(jax.random.key(3), jnp.arange(32))
    ours = np.asarray(augment(keys, images, (124, 116, 104)))
    assert ours.dtype == np.uint8
    different = {row.tobytes() for row in ours}
    assert len(different) > 16
    np.testing.assert_array_equal(augment(keys[::-1], images, (124, 116, 104)), ours[::-1])
