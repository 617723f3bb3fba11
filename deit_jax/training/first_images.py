"""The first training images as the model sees them: what the first step computes from its batch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.augment.pipeline import TrainAugmentation
from deit_jax.data.bad_images import BadImages
from deit_jax.data.loading import train_batches
from deit_jax.data.registry import open_source, train_crop
from deit_jax.data.sources import ImageSource
from deit_jax.errors import first_line
from deit_jax.parallel.host_rows import HostRows
from deit_jax.reporting.run_log import Pictures, RunLog
from deit_jax.training.plan import Plan, resolve
from deit_jax.training.program import build_augmentation
from deit_jax.training.step import step_keys

TRAINING_IMAGES = 16  # that are shown of a run


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


def first_images(config: ConfigDict, rows: int, mixing: tuple[int, int] | None = None) -> FirstImages:
    """At least `rows` of the first step's images, or as many as it has.

    mixing: group size and groups per block that a run recorded; None: see `resolve`. Raises ConfigError or DataError.
    """
    source = open_source(config.data, "train")
    plan = resolve(config, num_images=len(source), data_classes=len(source.class_names), mixing=mixing)
    return first_of_batch(config, plan, source.class_names, read_first_rows(config, plan, source, rows), rows)


def read_first_rows(
    config: ConfigDict, plan: Plan, source: ImageSource, rows: int, bad_images: BadImages | None = None
) -> dict[str, np.ndarray]:
    """The first rows of the first step's batch, wherever they are read in the run; no image of other rows is read.

    Whole mixing groups, at least `rows` or as many as the batch has: `image` uint8[B, H, W, 3] and `label` int32[B].

    bad_images: counts images that are replaced; None: one that warns. Raises DataError.
    """
    row = plan.order.positions(0).row
    (positions,) = np.nonzero(row < _whole_groups(build_augmentation(config, plan), rows))
    batches: Any = train_batches(  # a generator, which can be closed
        source,
        plan.order,
        train_crop(config.data, plan.image_size, config.evaluation),
        start_step=0,
        stop_step=1,
        stretches=tuple((position, position + 1) for position in positions.tolist()),
        dealt=False,
        num_threads=config.data.num_threads,
        on_bad_image=config.data.on_bad_image,
        bad_images=bad_images,
    )
    with contextlib.closing(batches):
        batch = next(batches)
    return {name: values[np.argsort(row[positions])] for name, values in batch.items()}


def _whole_groups(augment: TrainAugmentation, rows: int) -> int:
    """At least so many rows: partners are at both ends of a group."""
    group = augment.group_size if augment.mixes else 1
    return -(-rows // group) * group


def first_of_batch(
    config: ConfigDict, plan: Plan, class_names: tuple[str, ...], batch: Mapping[str, np.ndarray], rows: int
) -> FirstImages:
    """The same of the first step's batch, or of the main process's part of it, that is there already."""
    augment = build_augmentation(config, plan)
    count = _whole_groups(augment, rows)
    key, _ = step_keys(config.seed, 0)
    return FirstImages(augment, key, batch["image"][:count], batch["label"][:count], class_names)


def log_first_images(
    log: RunLog, config: ConfigDict, plan: Plan, source: ImageSource, rows: HostRows, batch: Mapping[str, np.ndarray]
) -> None:
    """Log the first images of the first step as the model will see them. Too little memory for that is a warning.

    rows: what this process reads of a batch. batch: that of the first step.
    """
    if not rows.dealt or rows.stretches[0][0] > 0:  # the first rows come from several hosts: read them here
        batch = read_first_rows(config, plan, source, TRAINING_IMAGES, BadImages(lambda line: None))
    try:
        found = first_of_batch(config, plan, source.class_names, batch, TRAINING_IMAGES)
        seen, targets = found.as_trained_on(TRAINING_IMAGES)
        log.pictures(0, Pictures("images/training", list(seen), targets, source.class_names))
    except jax.errors.JaxRuntimeError as error:  # a picture is not worth the run
        console.warn(f"the training images are not logged ({first_line(error)})")


def as_pixels(images: np.ndarray, augment: TrainAugmentation) -> np.ndarray:
    """Normalised float32[B, H, W, 3] as uint8 for the eye; erased noise is cut off at black and white."""
    pixels = images * np.asarray(augment.std) + np.asarray(augment.mean)
    return (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)


def mixture(target: np.ndarray, names: tuple[str, ...], label_smoothing: float) -> str:
    """The classes of a target and their shares, without the smoothing: "0.63 Coat + 0.37 Bag"."""
    shares = (target - label_smoothing / len(target)) / (1 - label_smoothing)
    largest = [k for k in np.argsort(-shares, kind="stable")[:2] if shares[k] > 5e-3]
    return " + ".join(
        f"{shares[k]:.2f} {names[k]}" if shares[k] < 0.995 else names[k] for k in largest if k < len(names)
    )
