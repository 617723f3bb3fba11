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
from deit_jax.data.joint_order import JointOrder
from deit_jax.data.loading import train_batches
from deit_jax.data.registry import train_crop
from deit_jax.data.sampling import Stretches
from deit_jax.data.sources import ImageSource
from deit_jax.data.unlabelled import open_training_images
from deit_jax.errors import first_line
from deit_jax.parallel.host_rows import HostRows
from deit_jax.reporting.run_log import Pictures, RunLog
from deit_jax.training.plan import Plan, plan_of
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
        """Returns a target float32[K] as text, "unlabelled" or the result of `mixture`."""
        if self.augment.unlabelled and not np.any(target):
            return "unlabelled"
        return mixture(target, self.class_names, self.augment.label_smoothing)

    def as_trained_on(self, rows: int) -> tuple[np.ndarray, list[str]]:
        """Returns the first images after augmentation, uint8[rows, H, W, 3], and the classes and shares of their targets."""
        seen, targets = jax.jit(self.augment)(self.key, self.images, self.labels)
        shown = self.shown(rows)
        pixels = as_pixels(np.asarray(seen)[shown], self.augment)
        return pixels, [self.mixture(target) for target in np.asarray(targets)[shown]]

    def shown(self, rows: int) -> np.ndarray:
        """Returns the rows to show, at most `rows`: the first ones, of labelled and of unlabelled images if there are both."""
        without = np.flatnonzero(self.labels < 0)[: rows // 2]
        labelled = np.flatnonzero(self.labels >= 0)[: rows - len(without)]
        return np.sort(np.concatenate([labelled, without]))

    def class_of(self, row: int) -> str:
        """Returns the class of a row's image, or "unlabelled"."""
        return self.class_names[self.labels[row]] if self.labels[row] >= 0 else "unlabelled"


def first_images(
    config: ConfigDict, rows: int, mixing: tuple[int, int] | None = None, unlabelled: int | None = None
) -> FirstImages:
    """Returns at least `rows` of the first step's images, or the whole batch.

    mixing: group size and groups per block that a run recorded, unlabelled: its unlabelled rows; None: see `resolve`.
    Raises ConfigError or DataError.
    """
    source = open_training_images(config)
    plan = plan_of(config, source, mixing=mixing, unlabelled=unlabelled)
    return first_of_batch(config, plan, source.class_names, read_first_rows(config, plan, source, rows), rows)


def read_first_rows(
    config: ConfigDict, plan: Plan, source: ImageSource, rows: int, bad_images: BadImages | None = None
) -> dict[str, np.ndarray]:
    """Reads only the first rows of the first step's batch, whichever process reads them in the run.

    Returns whole mixing groups, at least `rows` or the whole batch: `image` uint8[B, H, W, 3] and `label` int32[B].

    bad_images: counts replaced images; None: a counter that warns. Raises DataError.
    """
    count = _rows_to_read(plan, build_augmentation(config, plan), rows)
    stretches: Stretches
    if isinstance(plan.order, JointOrder):  # it deals any rows
        where, stretches = np.arange(count), ((0, count),)
    else:
        row = plan.order.positions(0).row
        (positions,) = np.nonzero(row < count)
        where = row[positions]
        stretches = tuple((position, position + 1) for position in positions.tolist())
    batches: Any = train_batches(  # a generator, which can be closed
        source,
        plan.order,
        train_crop(config.data, plan.image_size, config.evaluation),
        start_step=0,
        stop_step=1,
        stretches=stretches,
        dealt=isinstance(plan.order, JointOrder),
        num_threads=config.data.num_threads,
        on_bad_image=config.data.on_bad_image,
        bad_images=bad_images,
    )
    with contextlib.closing(batches):
        batch = next(batches)
    return {name: values[np.argsort(where)] for name, values in batch.items()}


def _rows_to_read(plan: Plan, augment: TrainAugmentation, rows: int) -> int:
    """Rounds up to whole groups, since partners are at both ends of a group, and to rows of both kinds, if there are two."""
    if isinstance(plan.order, JointOrder):
        without = np.flatnonzero(plan.order.is_unlabelled())
        rows = max(rows, int(without[: rows // 2].max(initial=0)) + 1)
    group = augment.group_size if augment.mixes else 1
    return min(-(-rows // group) * group, plan.order.batch_size)


def first_of_batch(
    config: ConfigDict, plan: Plan, class_names: tuple[str, ...], batch: Mapping[str, np.ndarray], rows: int
) -> FirstImages:
    """Returns the first images of `batch`: the first step's, or the main process's part of it."""
    augment = build_augmentation(config, plan)
    count = _rows_to_read(plan, augment, rows)
    key, _ = step_keys(config.seed, 0)
    return FirstImages(augment, key, batch["image"][:count], batch["label"][:count], class_names)


def log_first_images(
    log: RunLog, config: ConfigDict, plan: Plan, source: ImageSource, rows: HostRows, batch: Mapping[str, np.ndarray]
) -> None:
    """Logs the first images of the first step as the model sees them. Only warns if memory is insufficient.

    rows: the rows that this process reads. batch: the first step's.
    """
    start, stop = rows.stretches[0]
    wanted = _rows_to_read(plan, build_augmentation(config, plan), TRAINING_IMAGES)
    elsewhere = start > 0 or (isinstance(plan.order, JointOrder) and stop < wanted)
    if not rows.dealt or elsewhere:  # several hosts read the first rows: read them here
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
