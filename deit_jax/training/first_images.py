"""The first training images as the model sees them, after augmentation and mixing."""

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

TRAINING_IMAGES = 16  # shown per run


@dataclasses.dataclass(frozen=True)
class FirstImages:
    """The first rows of the first step's batch, as read by the host: whole mixing groups if the recipe mixes."""

    augment: TrainAugmentation
    key: jax.Array  # the augmentation's key of the step
    images: np.ndarray  # uint8[B, H, W, 3]
    labels: np.ndarray  # int32[B]
    class_names: tuple[str, ...]

    def mixture(self, target: np.ndarray) -> str:
        """Returns the classes and shares of a target float32[K], without label smoothing: "0.63 Coat + 0.37 Bag"."""
        return mixture(target, self.class_names, self.augment.label_smoothing)

    def as_trained_on(self, rows: int) -> tuple[np.ndarray, list[str]]:
        """Returns the first images after augmentation, uint8[rows, H, W, 3], and the classes and shares of their targets."""
        seen, targets = jax.jit(self.augment)(self.key, self.images, self.labels)
        pixels = as_pixels(np.asarray(seen[:rows]), self.augment)
        return pixels, [self.mixture(target) for target in np.asarray(targets[:rows])]


def first_images(config: ConfigDict, rows: int, mixing: tuple[int, int] | None = None) -> FirstImages:
    """Returns at least `rows` of the first step's images, or the whole batch.

    mixing: group size and groups per block that a run recorded; None: see `resolve`. Raises ConfigError or DataError.
    """
    source = open_source(config.data, "train")
    plan = resolve(config, num_images=len(source), data_classes=len(source.class_names), mixing=mixing)
    return first_of_batch(config, plan, source.class_names, read_first_rows(config, plan, source, rows), rows)


def read_first_rows(
    config: ConfigDict, plan: Plan, source: ImageSource, rows: int, bad_images: BadImages | None = None
) -> dict[str, np.ndarray]:
    """Reads only the first rows of the first step's batch, whichever process reads them in the run.

    Returns whole mixing groups, at least `rows` or the whole batch: `image` uint8[B, H, W, 3] and `label` int32[B].

    bad_images: counts replaced images; None: a counter that warns. Raises DataError.
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
    """Rounds up to whole groups, since partners are at both ends of a group."""
    group = augment.group_size if augment.mixes else 1
    return -(-rows // group) * group


def first_of_batch(
    config: ConfigDict, plan: Plan, class_names: tuple[str, ...], batch: Mapping[str, np.ndarray], rows: int
) -> FirstImages:
    """Returns the first images of `batch`: the first step's, or the main process's part of it."""
    augment = build_augmentation(config, plan)
    count = _whole_groups(augment, rows)
    key, _ = step_keys(config.seed, 0)
    return FirstImages(augment, key, batch["image"][:count], batch["label"][:count], class_names)


def log_first_images(
    log: RunLog, config: ConfigDict, plan: Plan, source: ImageSource, rows: HostRows, batch: Mapping[str, np.ndarray]
) -> None:
    """Logs the first images of the first step as the model sees them. Only warns if memory is insufficient.

    rows: the rows that this process reads. batch: the first step's.
    """
    if not rows.dealt or rows.stretches[0][0] > 0:  # several hosts read the first rows: read them here
        batch = read_first_rows(config, plan, source, TRAINING_IMAGES, BadImages(lambda line: None))
    try:
        first = first_of_batch(config, plan, source.class_names, batch, TRAINING_IMAGES)
        seen, targets = first.as_trained_on(TRAINING_IMAGES)
        log.pictures(0, Pictures("images/training", list(seen), targets, source.class_names))
    except jax.errors.JaxRuntimeError as error:  # pictures must not end the run
        console.warn(f"the training images are not logged ({first_line(error)})")


def as_pixels(images: np.ndarray, augment: TrainAugmentation) -> np.ndarray:
    """Converts normalised float32[B, H, W, 3] to uint8 for display; clips the noise of erased regions."""
    pixels = images * np.asarray(augment.std) + np.asarray(augment.mean)
    return (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)


def mixture(target: np.ndarray, names: tuple[str, ...], label_smoothing: float) -> str:
    """Returns the classes and shares of a target float32[K], without label smoothing: "0.63 Coat + 0.37 Bag"."""
    shares = (target - label_smoothing / len(target)) / (1 - label_smoothing)
    largest = [k for k in np.argsort(-shares, kind="stable")[:2] if shares[k] > 5e-3]
    return " + ".join(
        f"{shares[k]:.2f} {names[k]}" if shares[k] < 0.995 else names[k] for k in largest if k < len(names)
    )
