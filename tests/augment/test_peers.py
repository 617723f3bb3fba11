"""Random crops, operations and magnitudes on photographs against timm and Pillow themselves; needs them installed."""

import functools
from unittest import mock

import jax
import numpy as np
import pytest

from deit_jax.augment import plans
from deit_jax.augment.operations import NUMBER, OPERATIONS, SKIP
from tests.augment.photographs import FILL, assert_equals_pillow, difference

pytestmark = pytest.mark.long
timm_augment = pytest.importorskip("timm.data.auto_augment")
image_module = pytest.importorskip("PIL.Image")
datasets = pytest.importorskip("sklearn.datasets")

SIZE, CHUNK = 224, 60
TIMM = {"Posterize": "PosterizeIncreasing", "Solarize": "SolarizeIncreasing"}
TIMM |= {name: f"{name}Increasing" for name in ("Color", "Contrast", "Brightness", "Sharpness")}
TIMM |= {name: f"{name}Rel" for name in ("TranslateX", "TranslateY")}


def random_cases(seed, operations):
    """For each row of operations: a crop, the arguments of random levels, and the results of timm and Pillow."""
    rng = np.random.default_rng(seed)
    photos = [datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    crops, arguments, expected = [], np.zeros(np.shape(operations), np.float32), []
    for row, numbers in enumerate(operations):
        photo = photos[rng.integers(2)]
        top, left = (rng.integers(size - SIZE + 1) for size in photo.shape[:2])
        crops.append(photo[top : top + SIZE, left : left + SIZE])
        image = image_module.fromarray(crops[-1])
        for layer, number in enumerate(numbers):
            name = TIMM.get(OPERATIONS[number], OPERATIONS[number])
            level = np.clip(rng.normal(9, 0.5), 0, 10) if rng.random() < 0.5 else rng.uniform(0, 10)
            negative = rng.random() < 0.5
            with mock.patch.object(timm_augment, "_randomly_negate", lambda value, n=negative: -value if n else value):
                to_argument = timm_augment.LEVEL_TO_ARG[name]
                argument = to_argument(level, {"translate_pct": 0.45})[0] if to_argument else 0
            # Our argument is a float32, and Pillow gets the same number.
            argument = float(np.float32(argument)) if isinstance(argument, float) else argument
            arguments[row, layer] = argument
            if OPERATIONS[number] == "Posterize" and argument == 0:  # black; Pillow 13 rejects it
                image = image_module.fromarray(np.zeros_like(crops[-1]))
                continue
            given = (argument,) if to_argument else ()
            image = timm_augment.NAME_TO_OP[name](
                image, *given, fillcolor=FILL, resample=image_module.Resampling.BICUBIC
            )
        expected.append(np.asarray(image))
    return np.stack(crops), arguments, np.stack(expected)


@functools.cache
def compiled(plan):
    return jax.jit(functools.partial(plans.apply_operations, fill=FILL, plan=plan))


def apply(plan, images, operations, arguments):
    """In chunks of one shape, so that each plan is compiled once."""
    rows = range(0, len(images), CHUNK)
    return np.concatenate(
        [compiled(plan)(images[k : k + CHUNK], operations[k : k + CHUNK], arguments[k : k + CHUNK]) for k in rows]
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_single_operations(seed):
    """Eight images per operation."""
    numbers = np.repeat(np.arange(len(OPERATIONS)), 8).astype(np.int32)
    operations = np.stack([numbers, np.full_like(numbers, SKIP)], axis=1)
    images, arguments, expected = random_cases(seed, operations[:, :1])
    arguments = np.concatenate([arguments, 0 * arguments], axis=1)
    results = {plan: apply(plan, images, operations, arguments) for plan in plans.PLANS}
    for name in OPERATIONS:
        rows = numbers == NUMBER[name]
        for ours in results.values():
            assert_equals_pillow(name, ours[rows], expected[rows])
    assert difference(*results.values()).max() <= 1


@pytest.mark.parametrize("seed", [2, 3])
def test_chains_of_two(seed):
    """Of 360 images with two operations, fewer than one value in 100 000 differs by more than one gray level."""
    operations = np.random.default_rng(seed).integers(0, SKIP, (360, 2)).astype(np.int32)
    images, arguments, expected = random_cases(seed, operations)
    results = {plan: apply(plan, images, operations, arguments) for plan in plans.PLANS}
    for ours in results.values():
        assert np.mean(difference(ours, expected) > 1) < 1e-5
    assert np.mean(difference(*results.values()) > 1) < 1e-5
