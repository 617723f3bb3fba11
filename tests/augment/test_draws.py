"""Policies parse timm's notation and draw with timm's frequencies (tests/golden/record_augment.py)."""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.augment import erasing, mixing
from deit_jax.augment.autoaugment import POLICIES, AutoAugment
from deit_jax.augment.mixing import fold_in_each
from deit_jax.augment.operations import NUMBER, OPERATIONS, SKIP, ColorJitter
from deit_jax.augment.randaugment import RandAugment
from tests.augment.photographs import GOLDEN as OPERATIONS_GOLDEN

DRAWS = np.load(pathlib.Path(__file__).parents[1] / "golden" / "augment_draws.npz")
PAPER = "rand-m9-mstd0.5-inc1"
COUNT = 20_000


@functools.cache
def draw(policy, count=COUNT):
    operations, arguments = jax.jit(policy.draw)(fold_in_each(jax.random.key(0), jnp.arange(count)))
    return np.asarray(operations), np.asarray(arguments)


def test_parse_reads_every_section():
    assert RandAugment.parse(PAPER) == RandAugment(9, 2, 0.5, True, 0.5)
    assert RandAugment.parse("rand-n3-p0.25-inc0-m7") == RandAugment(7, 3, 0.0, False, 0.25)
    assert RandAugment.parse("rand-mstd.7") == RandAugment(10, 2, 0.7, False, 0.5)
    assert RandAugment.parse("rand-mstd101").magnitude_std == math.inf
    assert RandAugment.parse("rand-m15-mmax30").max_level == 30
    assert AutoAugment.parse("original-mstd0.5") == AutoAugment("original", 0.5)
    assert AutoAugment.parse("v0r") == AutoAugment("v0r", 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("augmix-m9", "expected rand-"),
        ("rand-m9-w0", "'w0'"),
        ("rand-m9-tweights", "'tweights'"),
        ("rand-m9-mstdfoo", "'mstdfoo'"),
        ("rand-m", "'m'"),
        ("rand-m9.5", "whole number"),
        ("rand-m9--n2", "''"),
        ("rand-n0", "n must be at least 1"),
        ("rand-mmax0", "mmax must be at least 1"),
        ("rand-p1.5", "at most 1"),
        ("rand-m9-m8", "twice"),
        ("rand-m9 ", "'m9 '"),
    ],
)
def test_invalid_randaugment_raises(text, message):
    with pytest.raises(ValueError, match=message) as error:
        RandAugment.parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["3a", "original-m9", "original-mstd", "rand-m9", "Original", "v0-mstd0.5-mstd1"])
def test_invalid_autoaugment_raises(text):
    with pytest.raises(ValueError, match=r"expected original, originalr, v0, v0r, or one of them with -mstdX"):
        AutoAugment.parse(text)


@pytest.mark.parametrize("name", POLICIES)
def test_autoaugment_tables_equal_timm(name):
    operations, probabilities, levels = AutoAugment(name).pairs()
    timm = OPERATIONS_GOLDEN[f"policy_{name}"]  # [25, 2, (name, probability, level)]
    assert operations.shape == (25, 2)
    for number, timm_name in zip(operations.ravel(), timm[..., 0].ravel(), strict=True):
        ours = OPERATIONS[number]
        assert timm_name == {"Posterize": POLICIES[name][1], "TranslateY": "TranslateYRel"}.get(ours, ours)
    np.testing.assert_allclose(probabilities, timm[..., 1].astype(float), rtol=1e-6)
    np.testing.assert_array_equal(levels, timm[..., 2].astype(float))


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1", "rand-m7-n3-mstd101-p0.8", "original-mstd0.5", "v0"])
def test_operations_and_arguments_match_timm(text):
    """Shares of operations, and quantiles of arguments, of 20 000 images each; bounds of about four sigma."""
    operations, arguments = draw((RandAugment if text.startswith("rand") else AutoAugment).parse(text))
    applied = np.bincount(np.sum(operations != SKIP, axis=1), minlength=4)[:4] / COUNT
    np.testing.assert_allclose(applied, DRAWS[f"{text}/applied"][:4], atol=0.02)
    for number, name in enumerate(OPERATIONS):
        chosen = operations == number
        share = DRAWS[f"{text}/{name}/share"]
        assert abs(chosen.sum() / COUNT - share) < 0.001 + 6 * math.sqrt(share / COUNT)
        if not share:
            continue
        ours, timms = np.sort(arguments[chosen]), np.sort(DRAWS[f"{text}/{name}/arguments"])
        # The distance of the two distributions; discrete arguments are compared halfway up each step.
        middle = (np.searchsorted(ours, timms - 1e-4, "left") + np.searchsorted(ours, timms + 1e-4, "right")) / 2
        theirs = (np.searchsorted(timms, timms - 1e-4, "left") + np.searchsorted(timms, timms + 1e-4, "right")) / 2
        distance = np.abs(middle / len(ours) - theirs / len(timms)).max()
        assert distance < 0.03 + 2.5 / math.sqrt(len(ours)), name


def test_layers_are_drawn_with_replacement_and_equally():
    operations, _ = draw(RandAugment.parse(PAPER))
    for layer in operations.T:
        np.testing.assert_allclose(np.bincount(layer, minlength=16)[:15] / COUNT, 0.5 / 15, atol=0.006)
    applied = operations[np.all(operations != SKIP, axis=1)]
    assert abs(np.mean(applied[:, 0] == applied[:, 1]) - 1 / 15) < 0.015


def test_levels_are_clipped_at_ten_or_mmax():
    for text, top in ((PAPER, 10), ("rand-m20-mstd3-mmax25-p1", 25)):
        operations, arguments = draw(RandAugment.parse(text))
        degrees = np.abs(arguments[operations == NUMBER["Rotate"]])
        assert abs(degrees.max() - 3 * top) < 1e-3
        assert 0.01 < np.mean(degrees > 3 * top - 1e-3) < 0.08


def test_color_jitter_draws_as_torchvision():
    operations, factors = draw(ColorJitter(0.4))
    orders, counts = np.unique(operations, axis=0, return_counts=True)
    assert len(orders) == 6 and np.all(
        np.sort(orders) == sorted(NUMBER[n] for n in ("Brightness", "Contrast", "Color"))
    )
    np.testing.assert_allclose(counts / COUNT, 1 / 6, atol=0.012)
    assert factors.min() >= 0.6 and factors.max() <= 1.4
    np.testing.assert_allclose(np.quantile(factors, [0.25, 0.5, 0.75]), [0.8, 1.0, 1.2], atol=0.01)
    _, strong = draw(ColorJitter(1.5))
    assert 0 <= strong.min() < 0.01 and 2.49 < strong.max() <= 2.5


@pytest.mark.parametrize("max_count", [1, 3])
def test_erased_area_matches_timm(max_count):
    keys = fold_in_each(jax.random.key(1), jnp.arange(COUNT))
    boxes = jax.jit(erasing.draw_boxes, static_argnums=(1, 2, 3))(keys, 0.25, (56, 56), max_count)

    def area(boxes):
        inside = jax.vmap(lambda box: erasing.inside(box, 56, 56))(boxes)
        return jnp.mean(jnp.any(inside, 0))

    erased = np.asarray(jax.jit(lambda boxes: jax.lax.map(area, boxes, batch_size=500))(boxes))
    assert abs(np.mean(erased > 0) - DRAWS[f"erased_{max_count}/share"]) < 0.015
    ours = np.quantile(erased[erased > 0], DRAWS["quantiles"])
    np.testing.assert_allclose(ours[1:-1], DRAWS[f"erased_{max_count}/area"][1:-1], atol=0.015)


def test_mixing_matches_timm():
    options = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}
    mix = jax.jit(lambda key: mixing.draw_mix(key, jnp.arange(COUNT), (224, 224), **options))(jax.random.key(5))
    lam, cutmix = np.asarray(mix.lam), np.asarray(mix.cutmix)
    assert abs(cutmix.mean() - DRAWS["cutmix_share"]) < 0.02
    np.testing.assert_allclose(np.quantile(lam[cutmix], DRAWS["quantiles"]), DRAWS["cutmix_lam"], atol=0.02)
    np.testing.assert_allclose(np.quantile(lam[~cutmix], DRAWS["quantiles"]), DRAWS["mixup_lam"], atol=0.02)
