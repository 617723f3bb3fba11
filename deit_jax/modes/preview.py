"""--mode=preview: the first training images of a configuration after each stage of its recipe, as a picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.augment.operations import OPERATIONS, SKIP
from deit_jax.augment.pipeline import TrainAugmentation
from deit_jax.config import ConfigError
from deit_jax.config_check import validate
from deit_jax.reporting.plots import image_grid, undrawable
from deit_jax.training.first_images import as_pixels, first_images

_NAMED = 20  # classes on the console, of those that the picture numbers
# Which parts of the recipe are still off after a stage. Every stage draws by itself, so that a part that is off changes
# nothing of the others: each picture is the very image that the first training step would see at that point.
_MIXING_OFF = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0}
_STAGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("flip", {**_MIXING_OFF, "erase_probability": 0.0, "rand_augment": "", "auto_augment": "", "color_jitter": 0.0}),
    ("operations", {**_MIXING_OFF, "erase_probability": 0.0}),
    ("erasing", _MIXING_OFF),
    ("mixing, as trained on", {}),
)


def preview(config: ConfigDict, output: Path, *, rows: int = 8) -> Path:
    """Write a grid of the first `rows` images of the first step to `output`: a column for each stage, the draws named under it.

    Raises ConfigError or DataError, each with one clear line.
    """
    validate(config)
    if output.suffix.lower() not in (".png", ".jpg", ".jpeg", ".pdf", ".svg"):
        raise ConfigError(f"--output={output} is not a picture: end it in .png, .jpg, .pdf or .svg")
    seen = first_images(config, rows)
    rows = min(rows, len(seen.images))

    pictures, targets = stages(seen.augment, seen.key, seen.images, seen.labels)
    operations = operation_names(seen.augment, seen.key, len(seen.images))[:rows]
    captions = [
        [seen.class_names[label], "", drawn, "", seen.mixture(target)]
        for label, drawn, target in zip(seen.labels[:rows], operations, targets[:rows], strict=True)
    ]
    columns = ["crop (host)", *(name for name, _ in _STAGES)]
    image_grid(output, columns, pictures[:rows], captions, class_names=seen.class_names)
    if unwritten := undrawable(seen.class_names):
        numbered = ", ".join(f"{number} {name}" for number, name in sorted(unwritten.items())[:_NAMED])
        more = ", ..." if len(unwritten) > _NAMED else ""
        console.say(
            f"no installed font has the characters of some classes, which the picture numbers: {numbered}{more}"
        )
    console.say(f"the first {rows} images of the first step are in {output}")
    return output


def stages(
    augment: TrainAugmentation, key: jax.Array, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The images as they come, and after each of _STAGES: uint8[B, 1 + stages, H, W, 3]; and the targets float32[B, K].

    images: uint8[B, H, W, 3]; labels: int32[B]; B is a multiple of the group size where the recipe mixes.
    """
    pictures, targets = [images], None
    for _, off in _STAGES:
        seen, targets = jax.jit(dataclasses.replace(augment, **off))(key, images, labels)
        pictures.append(as_pixels(np.asarray(seen), augment))
    return np.stack(pictures, axis=1), np.asarray(targets)


def operation_names(augment: TrainAugmentation, key: jax.Array, count: int) -> list[str]:
    """What was drawn for each of the first `count` rows: "Rotate -27, Posterize 1"."""
    drawn = augment.draw_operations(key, jnp.arange(count))
    if drawn is None:
        return [""] * count
    numbers, arguments = (np.asarray(array) for array in drawn)
    texts = []
    for row_numbers, row_arguments in zip(numbers, arguments, strict=True):
        pairs = [(OPERATIONS[n], a) for n, a in zip(row_numbers, row_arguments, strict=True) if n != SKIP]
        without = ("AutoContrast", "Equalize", "Invert")
        texts.append(", ".join(name if name in without else f"{name} {a:.3g}" for name, a in pairs) or "none")
    return texts
