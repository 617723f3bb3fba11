"""The values derived from a configuration and its dataset."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict

from deit_jax.config import ConfigError
from deit_jax.data.joint_order import JointOrder, joint_mixing_sizes, unlabelled_rows
from deit_jax.data.sampling import TrainOrder, mixing_sizes
from deit_jax.data.sources import ImageSource
from deit_jax.data.unlabelled import labelled_of, unlabelled_of
from deit_jax.models import native_image_size


@dataclasses.dataclass(frozen=True)
class Plan:
    """The derived values of a run; built by `resolve`."""

    num_classes: int
    image_size: int  # pixels
    compute_dtype: str  # "float32" or "bfloat16"
    order: TrainOrder | JointOrder  # the order and batch position of the images
    steps_per_epoch: int
    total_steps: int
    peak_learning_rate: float
    evaluate_every: int  # steps; 0: only after the last step
    checkpoint_every: int  # steps

    @property
    def labelled(self) -> TrainOrder:
        """The order of the labelled images: all of them, unless there are unlabelled ones."""
        return self.order.labelled if isinstance(self.order, JointOrder) else self.order

    @property
    def unlabelled(self) -> TrainOrder | None:
        """The order of the unlabelled images, if there are any."""
        return self.order.unlabelled if isinstance(self.order, JointOrder) else None


def resolve(
    config: ConfigDict,
    *,
    num_images: int,
    data_classes: int,
    platform: str | None = None,
    epoch_steps: int | None = None,
    mixing: tuple[int, int] | None = None,
    num_unlabelled: int | None = None,
    unlabelled: int | None = None,
) -> Plan:
    """Returns the plan of a validated configuration for a training set of `num_images` images in `data_classes` classes.

    num_unlabelled: further images without labels; None: those of config.unlabelled are as many as the labelled ones, if there are
    any. unlabelled: rows of a batch with such images of a resumed run; None: derived from config.unlabelled.share.

    platform: "cpu", "gpu" or "tpu"; None: that of the local devices. epoch_steps: steps per epoch of a resumed run whose images
    have changed; None: derived from the images. mixing: group size and groups per block of a resumed run; None: configured, or
    derived from the batch.

    Raises ConfigError if there are too few images for a batch, or more classes than the model has.
    """
    further = 0
    if config.unlabelled.source:
        further = unlabelled or rows_without_labels(config)
    group_size, groups_per_block = mixing or sizes_of_mixing(config, further)
    try:
        labelled = TrainOrder(
            num_examples=num_images,
            batch_size=config.train.batch_size - further,
            repeats=config.data.repeats,
            group_size=group_size,
            groups_per_block=groups_per_block,
            seed=config.seed,
            epoch_steps=epoch_steps,
        )
        order: TrainOrder | JointOrder = labelled
        if further:
            order = JointOrder.of(labelled, num_images if num_unlabelled is None else num_unlabelled, further)
        image_size = config.image_size or native_image_size(config.model.name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    num_classes = config.num_classes or data_classes
    if num_classes < data_classes:
        raise ConfigError(
            f"config.num_classes={num_classes}, but the dataset has {data_classes} classes; "
            "leave it unset to use the dataset's number"
        )
    steps_per_epoch = order.steps_per_epoch
    total_steps = config.train.epochs * steps_per_epoch
    if config.train.max_steps is not None:
        total_steps = min(total_steps, config.train.max_steps)
    scale = config.train.batch_size / config.schedule.base_batch_size
    return Plan(
        num_classes=num_classes,
        image_size=image_size,
        compute_dtype=compute_dtype(config, platform),
        order=order,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        peak_learning_rate=config.schedule.base_learning_rate * scale,
        evaluate_every=config.evaluation.every_epochs * steps_per_epoch,
        checkpoint_every=config.checkpoint.every_steps or steps_per_epoch,
    )


def plan_of(
    config: ConfigDict,
    source: ImageSource,
    *,
    mixing: tuple[int, int] | None = None,
    unlabelled: int | None = None,
) -> Plan:
    """Returns the plan for training images, see `resolve`."""
    further = unlabelled_of(source)
    return resolve(
        config,
        num_images=len(labelled_of(source)),
        data_classes=len(source.class_names),
        mixing=mixing,
        num_unlabelled=None if further is None else len(further),
        unlabelled=unlabelled,
    )


def sizes_of_mixing(config: ConfigDict, unlabelled: int = 0) -> tuple[int, int]:
    """Returns group size and groups per block, configured or derived from the batch. Raises ConfigError if there are none.

    unlabelled: the rows of the batch that have unlabelled images.
    """
    given = (config.data.repeats, config.augment.max_group_size)
    try:
        if unlabelled:
            return joint_mixing_sizes(config.train.batch_size, unlabelled, *given, **_given_mixing(config))
        return mixing_sizes(config.train.batch_size, *given, **_given_mixing(config))
    except ValueError as error:
        raise ConfigError(f"config.{error}") from error


def rows_without_labels(config: ConfigDict) -> int:
    """Returns how many rows of a batch have images of config.unlabelled. Raises ConfigError if the batch cannot be divided."""
    share, batch_size = config.unlabelled.share, config.train.batch_size
    try:
        return unlabelled_rows(batch_size, share, config.data.repeats, **_given_mixing(config))
    except ValueError as error:
        raise ConfigError(f"config.{error}") from error


def _given_mixing(config: ConfigDict) -> dict[str, Any]:
    augment = config.augment
    return {
        "group_size": augment.group_size,
        "groups_per_block": augment.groups_per_block,
        "mixes": (augment.mixup_alpha > 0 or augment.cutmix_alpha > 0) and augment.mix_probability > 0,
    }


def compute_dtype(config: ConfigDict, platform: str | None = None) -> str:
    """Returns the configured compute dtype, "float32" or "bfloat16"; "auto" depends on the platform (None: the local one)."""
    if config.compute_dtype == "auto":
        return "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"
    return config.compute_dtype
