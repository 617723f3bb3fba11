"""What our augmentation draws, observed from outside, and how it is compared with what timm draws.

A statistic has a name and a sample: float values, or integers that number the outcomes of a choice. The names, sample sizes and
definitions are those of benchmarks/peers/distributions_timm.py. Ours come from the recipe with the keys of the training step,
and from the crops with the loader's random numbers.

Two samples are compared by their counts in bins, so that a recorded sample is its counts. A choice has a bin for each outcome
and is tested by chi-square. Bins of values hold about equal shares of timm's sample, or single values where there are few; the
outer two hold what is out of its range. Most values lie on a grid, where float rounding would look like a difference, so
values closer than 1e-5 are taken as the same: no bin ends between them. Values are tested by chi-square, and by the
Kolmogorov-Smirnov distance at the bins' edges, which is at most the whole distance. The bound on p-values is 1e-6 divided by
their number (Bonferroni).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from benchmarks.peers import distributions_timm as peer
from deit_jax.augment.operations import OPERATIONS, SKIP
from deit_jax.augment.pipeline import TrainAugmentation
from deit_jax.data.decoding import RandomResizedCrop, decode, random_resized_crop_box
from deit_jax.data.loading import crop_rng
from deit_jax.training.step import step_keys
from tests.augment.table_9 import table_9

GOLDEN = Path(__file__).parents[1] / "golden" / "distributions.npz"
FAMILY_BOUND = 1e-6  # of the smallest p-value times their number
SAME = 1e-5  # values closer than this differ by rounding
BINS = 64
SEED = 0

Values = dict[str, np.ndarray]
OFF = {
    "flip_probability": 0.0,
    "rand_augment": "",
    "erase_probability": 0.0,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
    "label_smoothing": 0.0,
}


# --- Our draws ---------------------------------------------------------------------------------------------------------------


def keys_of_steps(count: int) -> Iterator[jax.Array]:
    """The augmentation's keys in the first steps."""
    return (step_keys(SEED, step)[0] for step in range(count))


def only(*names: str, **changes: Any) -> TrainAugmentation:
    """The recipe with only the named fields enabled, with Table 9's values or those in `changes`."""
    return table_9(2, **({name: value for name, value in OFF.items() if name not in names} | changes))


def draw_crops(**changes: Any) -> Values:
    """Boxes drawn with the loader's random numbers; changes: RandomResizedCrop's scale and ratio."""
    crop = RandomResizedCrop(peer.SIDE, **changes)
    values: Values = {}
    for shape in peer.SHAPES:
        rngs = (crop_rng(SEED, row // 1024, row % 1024) for row in range(peer.CROPS))
        boxes = [random_resized_crop_box(*shape, rng, crop.scale, crop.ratio) for rng in rngs]
        values |= peer.crop_statistics(np.array(boxes), shape)
    return values


def draw_flips(**changes: Any) -> Values:
    """Of images of one row, black and white."""
    recipe, rows = only("flip_probability", **changes), 10_000
    images = jnp.broadcast_to(jnp.array([0, 255], jnp.uint8)[:, None], (rows, 1, 2, 3))
    flip = jax.jit(lambda key, images: recipe(key, images, jnp.zeros(rows, jnp.int32))[0][:, 0, 0, 0] > 0)
    return {"flip": np.concatenate([flip(key, images) for key in keys_of_steps(peer.FLIPS // rows)]).astype(int)}


def draw_operations(**changes: Any) -> Values:
    """Operations that the recipe draws for batches of 1000 rows."""
    recipe, rows = only("rand_augment", **changes), 1000
    draw = jax.jit(lambda key: recipe.draw_operations(key, jnp.arange(rows)))
    drawn = [draw(key) for key in keys_of_steps(peer.OPERATION_DRAWS // rows)]
    numbers, arguments = (np.concatenate(part) for part in zip(*drawn, strict=True))
    numbering = np.array([peer.OPERATIONS.index(name) for name in OPERATIONS] + [peer.NONE])
    assert len(OPERATIONS) == SKIP == peer.NONE
    return peer.operation_statistics(numbering[numbers], arguments)


def boxes_of(masks: jax.Array) -> jax.Array:
    """Bounding rectangles of the True values in bool[N, H, W]: int32[N, 4], top, bottom, left, right; zeros if none."""
    edges = []
    for axis in (2, 1):
        lines = jnp.any(masks, axis)
        edges += [jnp.argmax(lines, 1), lines.shape[1] - jnp.argmax(lines[:, ::-1], 1)]
    return jnp.where(jnp.any(masks, (1, 2))[:, None], jnp.stack(edges, 1), 0)


def draw_erasing(**changes: Any) -> Values:
    """Boxes of noise in gray images."""
    recipe, rows, side = only("erase_probability", **changes), 500, peer.ERASED_SIDE
    grey = jnp.full((rows, side, side, 3), 128, jnp.uint8)
    before = only()(jax.random.key(0), grey[:1], jnp.zeros(1, jnp.int32))[0]

    @jax.jit
    def erased(key: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        images = recipe(key, images, jnp.zeros(rows, jnp.int32))[0]
        boxes = boxes_of(jnp.any(images != before, -1))
        return boxes, images[jnp.arange(rows), boxes[:, 0], boxes[:, 2]]

    found = [erased(key, grey) for key in keys_of_steps(peer.ERASINGS // rows)]
    return peer.erasing_statistics(*(np.concatenate(part) for part in zip(*found, strict=True)))


def draw_mixing(**changes: Any) -> Values:
    """Groups of a black image and a white one."""
    # Without the photographs' mean and deviation, so that black is 0 and white is 1.
    options = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "group_size": 2}
    recipe = only("mixup_alpha", "cutmix_alpha", **(options | changes))
    groups, side = 500, peer.MIXED_SIDE
    colors = jnp.tile(jnp.array([0, 255], jnp.uint8), groups)
    images = jnp.broadcast_to(colors[:, None, None, None], (2 * groups, side, side, 3))

    @jax.jit
    def mixed(key: jax.Array, images: jax.Array) -> tuple[jax.Array, ...]:
        pixels, targets = recipe(key, images, jnp.tile(jnp.arange(2), groups))
        whites = pixels[::2, :, :, 0]
        cutmix = jnp.all((whites == 0) | (whites == 1), (1, 2))
        return cutmix, targets[::2, 0], boxes_of(whites == 1), jnp.mean(whites, (1, 2))

    found = [mixed(key, images) for key in keys_of_steps(peer.MIXINGS // groups)]
    cutmix, lam, boxes, whites = (np.concatenate(part) for part in zip(*found, strict=True))
    np.testing.assert_allclose(whites, 1 - lam, atol=1e-5)  # pixels and labels have the same shares
    return peer.mixing_statistics(cutmix, lam, boxes)


def draw_images(scale: tuple[float, float] = (0.08, 1.0), **changes: Any) -> Values:
    """Three photographs in turn, cropped and with all augmentations of single images."""
    names = ("flip_probability", "rand_augment", "erase_probability")
    recipe, rows, count = only(*names, **changes), 300, peer.IMAGES
    photos = [decode((peer.GOLDEN / name).read_bytes()) for name in peer.PHOTOGRAPHS]
    crop = RandomResizedCrop(peer.SIDE, scale)
    augment = jax.jit(lambda key, images: recipe(key, images, jnp.zeros(rows, jnp.int32))[0])
    found: list[dict[str, float]] = []
    for step, key in enumerate(keys_of_steps(count // rows)):
        crops = [crop(photos[row % len(photos)], crop_rng(SEED, step, row)) for row in range(rows)]
        found += [peer.image_statistics(image) for image in np.asarray(augment(key, np.stack(crops)))]
    return {f"image/{name}": np.array([values[name] for values in found]) for name in found[0]}


DRAWS: dict[str, Callable[..., Values]] = {
    "crops": draw_crops,
    "flips": draw_flips,
    "operations": draw_operations,
    "erasing": draw_erasing,
    "mixing": draw_mixing,
    "images": draw_images,
}


@functools.cache
def ours() -> Values:
    """All draws of the default recipe."""
    return {name: values for draw in DRAWS.values() for name, values in draw().items()}


# --- Comparison --------------------------------------------------------------------------------------------------------------


def edges_of(values: np.ndarray) -> np.ndarray:
    """Ends of bins with about equal shares of the sample: float64[about BINS], each in the middle of a gap in the sample.

    The first ends before the smallest value and the last begins after the largest: they hold what is out of timm's range.
    """
    ordered = np.sort(np.float64(values))
    gaps = np.flatnonzero(np.diff(ordered) > SAME)  # after these ranks
    if len(gaps) >= BINS:  # the widest in each of BINS parts of the sample
        wide = np.diff(ordered)[gaps]
        parts = gaps * BINS // len(ordered)
        gaps = np.array([gaps[parts == part][np.argmax(wide[parts == part])] for part in np.unique(parts)])
    middles = (ordered[gaps] + ordered[gaps + 1]) / 2
    return np.array([ordered[0] - SAME, *middles, ordered[-1] + SAME])


def counts_of(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Number of values in each bin: int64[len(edges) + 1]."""
    return np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)


def recording(values: Values) -> Values:
    """timm's sample as `<statistic>/counts`, and of float values `<statistic>/edges`."""
    recorded = {}
    for name, sample in values.items():
        if np.issubdtype(sample.dtype, np.integer):
            recorded[f"{name}/counts"] = np.bincount(sample)
        else:
            recorded[f"{name}/edges"] = edges_of(sample)
            recorded[f"{name}/counts"] = counts_of(sample, recorded[f"{name}/edges"])
    return recorded


def chi_square(one: np.ndarray, other: np.ndarray) -> float:
    """p-value of two samples' counts: float64[bins] each. Small bins are combined."""
    table = np.stack([one, other])
    rare = table.sum(0) * min(table.sum(1)) / table.sum() < 10
    table = np.concatenate([table[:, ~rare], table[:, rare].sum(1, keepdims=True)], 1)
    table = table[:, table.sum(0) > 0]
    return float(stats.chi2_contingency(table, correction=False).pvalue) if table.shape[1] > 1 else 1.0


def kolmogorov_smirnov(one: np.ndarray, other: np.ndarray) -> float:
    """p-value of two samples' counts in the same bins, in order; the distance within bins is ignored."""
    shares = [np.cumsum(counts) / counts.sum() for counts in (one, other)]
    effective = one.sum() * other.sum() / (one.sum() + other.sum())
    return float(stats.kstwobign.sf(np.abs(shares[0] - shares[1]).max() * np.sqrt(effective)))


def p_values(values: Values, recorded: Values) -> dict[str, float]:
    """p-values of each statistic of `values` and each of its tests."""
    found = {}
    for name, sample in values.items():
        theirs = recorded[f"{name}/counts"].astype(np.float64)
        if np.issubdtype(sample.dtype, np.integer):
            mine = np.bincount(sample, minlength=len(theirs))
            theirs = np.pad(theirs, (0, len(mine) - len(theirs)))
        else:
            mine = counts_of(sample, recorded[f"{name}/edges"])
            found[f"{name}, KS"] = kolmogorov_smirnov(mine, theirs)
        found[f"{name}, chi-square"] = chi_square(mine, theirs)
    return found


def rejected(found: dict[str, float], tests: int | None = None) -> dict[str, float]:
    """p-values that practically never occur under the null hypothesis; tests: total number, if `found` is only a part."""
    return {name: p for name, p in found.items() if p * (tests or len(found)) < FAMILY_BOUND}


def load_golden() -> Values:
    """timm's counts, see tests/golden/record_distributions.py."""
    with np.load(GOLDEN) as file:
        return dict(file)
