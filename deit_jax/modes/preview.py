"""--mode=preview: the first training images of a configuration after each stage of its recipe, as a picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from deit_jax.augment.operations import OPERATIONS, SKIP
from deit_jax.augment.recipe import TrainAugmentation
from deit_jax.config import ConfigError, validate
from deit_jax.data.loading import train_batches
from deit_jax.data.registry import open_source, train_crop
from deit_jax.reporting import console
from deit_jax.reporting.plots import image_grid
from deit_jax.training.plan import resolve
from deit_jax.training.program import build_augmentation
from deit_jax.training.step import step_keys

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
        raise ConfigError(f"--output={output} is no picture: end it in .png, .jpg, .pdf or .svg")
    seen = first_images(config, rows)
    rows = min(rows, len(seen.images))

    pictures, targets = stages(seen.augment, seen.key, seen.images, seen.labels)
    operations = operation_names(seen.augment, seen.key, len(seen.images))[:rows]
    captions = [
        [seen.class_names[label], "", drawn, "", seen.mixture(target)]
        for label, drawn, target in zip(seen.labels[:rows], operations, targets[:rows], strict=True)
    ]
    columns = ["crop (host)", *(name for name, _ in _STAGES)]
    image_grid(output, columns, pictures[:rows], captions)
    console.say(f"the first {rows} images of the first step are in {output}")
    return output


@dataclasses.dataclass(frozen=True)
class FirstImages:
    """The first rows of a configuration's first step as they come from the host: whole mixing groups where the recipe mixes."""

    augment: TrainAugmentation
    key: jax.Array  # of the step
    images: np.ndarray  # uint8[B, H, W, 3]
    labels: np.ndarray  # int32[B]
    class_names: tuple[str, ...]

    def mixture(self, target: np.ndarray) -> str:
        """What a target float32[K] is made of."""
        return mixture(target, self.class_names, self.augment.label_smoothing)

    def as_trained_on(self, rows: int) -> tuple[np.ndarray, list[str]]:
        """The first images after the whole recipe, uint8[rows, H, W, 3], and what their targets are made of."""
        seen, targets = jax.jit(self.augment)(self.key, self.images, self.labels)
        pixels = as_pixels(np.asarray(seen[:rows]), self.augment)
        return pixels, [self.mixture(target) for target in np.asarray(targets[:rows])]


def first_images(config: ConfigDict, rows: int) -> FirstImages:
    """At least `rows` of the first step's images, or as many as it has. Raises ConfigError or DataError."""
    source = open_source(config.data, "train")
    plan = resolve(config, num_images=len(source), data_classes=len(source.class_names))
    augment = build_augmentation(config, plan.num_classes)
    crop = train_crop(config.data, plan.image_size, config.evaluation)
    batches = train_batches(
        source, plan.order, crop, start_step=0, stop_step=1, num_threads=config.data.num_threads,
        on_bad_image=config.data.on_bad_image,
    )  # fmt: skip
    batch = next(iter(batches))
    group = augment.group_size if augment.mixes else 1  # whole groups: partners are at both ends
    count = -(-rows // group) * group
    key, _ = step_keys(config.seed, 0)
    return FirstImages(augment, key, batch["image"][:count], batch["label"][:count], source.class_names)


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


def as_pixels(images: np.ndarray, augment: TrainAugmentation) -> np.ndarray:
    """Normalised float32[B, H, W, 3] as uint8 for the eye; erased noise is cut off at black and white."""
    pixels = images * np.asarray(augment.std) + np.asarray(augment.mean)
    return (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)


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


def mixture(target: np.ndarray, names: tuple[str, ...], label_smoothing: float) -> str:
    """The classes of a target and their shares, without the smoothing: "0.63 Coat + 0.37 Bag"."""
    shares = (target - label_smoothing / len(target)) / (1 - label_smoothing)
    largest = [k for k in np.argsort(-shares, kind="stable")[:2] if shares[k] > 5e-3]
    return " + ".join(
        f"{shares[k]:.2f} {names[k]}" if shares[k] < 0.995 else names[k] for k in largest if k < len(names)
    )
