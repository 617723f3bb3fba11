import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.augment import mixing

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "augment_mixing.npz")


@pytest.fixture(scope="module")
def recorded_mix():
    """timm's three draws: each is one of our groups."""
    lam = jnp.asarray(GOLDEN["mix_lam"], jnp.float32)
    boxes, lam_of_box = jax.vmap(lambda lam, center: mixing.cutmix_box(lam, center, (12, 16)))(
        lam, GOLDEN["mix_center"]
    )
    cutmix = jnp.asarray(GOLDEN["mix_cutmix"])
    return mixing.Mix(jnp.where(cutmix, lam_of_box, lam), cutmix, jnp.where(cutmix[:, None], boxes, 0))


def test_images_equal_timm(recorded_mix):
    images = GOLDEN["mix_images"].reshape(12, 12, 16, 3)
    ours = mixing.mix_images(jnp.asarray(images), recorded_mix)
    np.testing.assert_allclose(ours, GOLDEN["mixed_images"].reshape(12, 12, 16, 3), rtol=0, atol=1e-6)
    # CutMix copies pixels without arithmetic.
    np.testing.assert_array_equal(ours[4:], GOLDEN["mixed_images"].reshape(12, 12, 16, 3)[4:])


def test_targets_equal_timm(recorded_mix):
    labels = jnp.asarray(GOLDEN["mix_labels"].reshape(-1))
    smoothed = mixing.smoothed_one_hot(labels, 10, 0.1)
    np.testing.assert_allclose(smoothed[:4], GOLDEN["smoothed_targets"], rtol=1e-6)
    ours = mixing.mix_targets(smoothed, recorded_mix)
    np.testing.assert_allclose(ours, GOLDEN["mixed_targets"].reshape(12, 10), rtol=0, atol=1e-6)


def test_smoothing_values_of_the_recipe():
    targets = mixing.smoothed_one_hot(jnp.asarray([3]), 1000, 0.1)
    assert targets[0, 3] == pytest.approx(0.9001) and targets[0, 4] == pytest.approx(0.0001)
    np.testing.assert_array_equal(mixing.smoothed_one_hot(jnp.asarray([1]), 3, 0.0), [[0, 1, 0]])


def test_odd_side_loses_a_pixel():
    # side int(224 * sqrt(0.5)) = 158, half 79; of 225 x 11: 159 -> 158 and 7 -> 6.
    box, lam = mixing.cutmix_box(jnp.float32(0.5), jnp.asarray([112, 5]), (225, 11))
    np.testing.assert_array_equal(box, [33, 191, 2, 8])
    assert lam == pytest.approx(1 - 158 * 6 / (225 * 11))


def test_boxes_equal_the_reference():
    """timm 0.3.2's `rand_bbox` and the area that its `cutmix_bbox_and_lam` uses to correct lam, in float64."""
    rng = np.random.default_rng(0)
    height, width = 224, 200
    lam = rng.random(4000, dtype=np.float32)
    center = np.stack([rng.integers(0, height, 4000), rng.integers(0, width, 4000)], axis=1)
    boxes, found = jax.vmap(lambda lam, center: mixing.cutmix_box(lam, center, (height, width)))(lam, center)
    ratio = np.sqrt(1 - lam.astype(np.float64))
    expected = []
    for side, middle in ((height, center[:, 0]), (width, center[:, 1])):
        half = (side * ratio).astype(int) // 2
        expected += [np.clip(middle - half, 0, side), np.clip(middle + half, 0, side)]
    np.testing.assert_array_equal(boxes, np.stack(expected, axis=1))
    top, bottom, left, right = expected
    np.testing.assert_allclose(found, 1 - (bottom - top) * (right - left) / (height * width), rtol=0, atol=1e-6)


def draw(count=20_000, size=(224, 224), **options):
    options = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0} | options
    drawn = jax.jit(lambda key: mixing.draw_mix(key, jnp.arange(count), size, **options))(jax.random.key(5))
    return jax.tree.map(np.asarray, drawn)


@pytest.mark.parametrize("mode", ["pair", "elem"])
def test_modes_of_rows_equal_timm(mode):
    """One group of eight rows; some are not mixed. In "pair" the second half repeats the first's draws."""
    lam = jnp.where(GOLDEN["rows_mixed"], jnp.asarray(GOLDEN["rows_lam"], jnp.float32), 1)
    boxes, lam_of_box = jax.vmap(lambda lam, center: mixing.cutmix_box(lam, center, (12, 16)))(
        lam, GOLDEN["rows_center"]
    )
    cutmix = jnp.asarray(GOLDEN["rows_cutmix"] & GOLDEN["rows_mixed"])
    mix = mixing.Mix(jnp.where(cutmix, lam_of_box, lam), cutmix, jnp.where(cutmix[:, None], boxes, 0))
    if mode == "pair":
        mix = jax.tree.map(lambda draws: jnp.concatenate([draws[:4], draws[3::-1]]), mix)
    images = mixing.mix_images(jnp.asarray(GOLDEN["rows_images"]), mix, 8)
    np.testing.assert_allclose(images, GOLDEN[f"{mode}_images"], rtol=0, atol=1e-6)
    smoothed = mixing.smoothed_one_hot(jnp.asarray(GOLDEN["rows_labels"]), 10, 0.1)
    np.testing.assert_allclose(mixing.mix_targets(smoothed, mix, 8), GOLDEN[f"{mode}_targets"], rtol=0, atol=1e-6)


def test_shared_draws_by_mode():
    options = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}
    draw_rows = jax.jit(
        functools.partial(mixing.draw_mix_of_rows, jax.random.key(3), image_size=(224, 224), **options),
        static_argnums=(0, 1, 2),
    )
    pair, elem = draw_rows(12, 6, "pair"), draw_rows(12, 6, "elem")
    assert len(draw_rows(12, 6, "batch").lam) == 2 and len(pair.lam) == len(elem.lam) == 12
    for draws in pair:
        groups = np.asarray(draws).reshape(2, 6, -1)
        np.testing.assert_array_equal(groups, groups[:, ::-1])
    assert len(set(pair.lam.tolist())) == 6 and len(set(elem.lam.tolist())) == 12
    # Keyed by the position in the batch; for a pair by that of its first row.
    np.testing.assert_array_equal(draw_rows(6, 6, "elem").lam, elem.lam[:6])
    np.testing.assert_array_equal(pair.lam[:3], elem.lam[:3])
    np.testing.assert_array_equal(pair.lam[6:9], elem.lam[6:9])
    with pytest.raises(ValueError, match="'half' is not one of batch, pair, elem"):
        draw_rows(12, 6, "half")


def test_recipe_draws():
    mix = draw()
    assert abs(np.mean(mix.cutmix) - 0.5) < 0.015
    mixup = mix.lam[~mix.cutmix]
    assert abs(mixup.mean() - 0.5) < 0.01
    assert abs(mixup.var() - 1 / (4 * 2.6)) < 0.003  # of Beta(a, a): 1 / (4 (2a + 1))
    assert not mix.box[~mix.cutmix].any()
    top, bottom, left, right = mix.box[mix.cutmix].T
    assert top.min() == left.min() == 0 and bottom.max() == right.max() == 224
    np.testing.assert_allclose(mix.lam[mix.cutmix], 1 - (bottom - top) * (right - left) / 224**2, atol=1e-6)
    # Unclipped boxes have an area of 1 - lam with lam uniform; clipping leaves 0.35 of the image on average.
    rng = np.random.default_rng(0)
    half = (224 * np.sqrt(1 - rng.random(100_000))).astype(int)[:, None] // 2
    center = rng.integers(0, 224, (100_000, 2))
    area = np.prod(np.clip(center + half, 0, 224) - np.clip(center - half, 0, 224), axis=1) / 224**2
    assert abs(np.mean(1 - mix.lam[mix.cutmix]) - area.mean()) < 0.01


@pytest.mark.parametrize(("options", "share"), [({"mixup_alpha": 0.0}, 1), ({"cutmix_alpha": 0.0}, 0)])
def test_alpha_zero_disables(options, share):
    mix = draw(200, **options)
    assert np.mean(mix.cutmix) == share and np.mean(mix.lam < 1) > 0.95


def test_probabilities():
    mix = draw(mix_probability=0.3, switch_probability=0.8)
    mixed = mix.cutmix | (mix.lam < 1)  # CutMix's box can be empty
    assert abs(mixed.mean() - 0.3) < 0.015
    assert abs(np.sum(mix.cutmix) / np.sum(mixed) - 0.8) < 0.02
    assert np.all(mix.lam[~mixed] == 1)
    assert not mix.cutmix[~mixed].any() and not mix.box[~mixed].any()


def test_both_alphas_zero_raise():
    with pytest.raises(ValueError, match="greater than 0"):
        draw(mixup_alpha=0.0, cutmix_alpha=0.0)


@pytest.mark.parametrize("alpha", [0.4, 0.8, 1.0, 3.0])
def test_beta(alpha):
    share = np.random.default_rng(0).random(20_000, dtype=np.float32)
    ours = np.sort(mixing.symmetric_beta(share, alpha))
    numpys = np.sort(np.random.default_rng(1).beta(alpha, alpha, 200_000))
    assert ours[0] >= 0 and ours[-1] <= 1
    # Kolmogorov-Smirnov; 0.0125 would be exceeded by chance once in 200 times.
    assert np.abs(np.searchsorted(numpys, ours) / 200_000 - np.arange(20_000) / 20_000).max() < 0.0125
    assert np.all(np.diff(mixing.symmetric_beta(np.linspace(0, 1, 999, dtype=np.float32), alpha)) >= 0)


def test_draws_are_keyed_by_group_and_groups_do_not_mix():
    few, many = draw(3), draw(5)
    for one, other in zip(few, many, strict=True):
        np.testing.assert_array_equal(one, other[:3])
    assert len(set(many.lam.tolist())) == 5
    # Rows of one group never affect another group.
    images = jnp.repeat(jnp.arange(3.0), 4)[:, None, None, None] * jnp.ones((12, 8, 8, 3))
    mixed = mixing.mix_images(images, draw(3, (8, 8)))
    np.testing.assert_allclose(mixed, images, atol=1e-6)
