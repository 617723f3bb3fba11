"""The augmentation of Table 9 (arXiv 2012.12877), in the order of the released code, and the preprocessing for evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from deit_jax.augment import erasing, mixing, plans
from deit_jax.augment.autoaugment import AutoAugment
from deit_jax.augment.color import normalize
from deit_jax.augment.mixing import fold_in_each
from deit_jax.augment.operations import ColorJitter
from deit_jax.augment.randaugment import RandAugment
from deit_jax.config import OPTIONS

# Every stage folds its tag into the key before the row's or the group's number, so that stages are independent.
_STAGES_OF_A_ROW = 4  # flip, drawn operations, erased box, erased noise: tags 0 to 3
_MIX = 4


@dataclasses.dataclass(frozen=True)
class TrainAugmentation:
    """Flips, applies RandAugment (or AutoAugment, or color jitter), normalises, erases and mixes uint8 batches.

    The fields are those of the configuration's `augment` section; config.py declares their meaning, bounds and choices. At most
    one of `rand_augment`, `auto_augment` and `color_jitter` is enabled. Hashable, so it can be a static argument of jit.

    Attributes:
        num_classes: K, the width of the targets.
        mean: also the fill color of RandAugment's geometric operations.
        group_size: rows that are mixed with each other, see `mixing`; even.
        unlabelled: some rows have the label -1 and get a target of zeros; a group has only such rows or none.

    Raises:
        ValueError: an invalid value; one line that names the field as augment.<name>.
    """

    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip_probability: float
    rand_augment: str
    auto_augment: str
    color_jitter: float
    erase_probability: float
    erase_mode: str
    erase_count: int
    mixup_alpha: float
    cutmix_alpha: float
    mix_mode: str
    mix_probability: float
    switch_probability: float
    label_smoothing: float
    group_size: int
    plan: str
    unlabelled: bool = False

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # a list would make the augmentation unhashable
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if self.num_classes < 1:
            raise ValueError(f"num_classes: must be at least 1, got {self.num_classes}")
        for field in dataclasses.fields(self):
            declared, value = OPTIONS.get(f"augment.{field.name}"), getattr(self, field.name)
            if declared is not None and (complaint := declared.complaint(value)) is not None:
                raise ValueError(f"augment.{field.name}: {value!r}{complaint}")
        if self.mixes and (self.group_size < 2 or self.group_size % 2):
            raise ValueError(f"augment.group_size: rows are mixed in pairs, so it must be even, got {self.group_size}")
        on = [name for name in ("rand_augment", "auto_augment", "color_jitter") if getattr(self, name)]
        if len(on) > 1:
            raise ValueError(f"augment.{on[1]}: excludes augment.{on[0]}; turn one of them off")
        for name, policy in (("rand_augment", RandAugment), ("auto_augment", AutoAugment)):
            try:
                if getattr(self, name):
                    policy.parse(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"augment.{name}: {error}") from None

    @classmethod
    def from_section(cls, section: Mapping[str, Any], **fields: Any) -> TrainAugmentation:
        """Creates the augmentation from a configuration's `augment` section; `fields` override or add fields."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**({name: value for name, value in section.items() if name in names} | fields))

    @property
    def mixes(self) -> bool:
        """Whether targets can mix two labels."""
        return (self.mixup_alpha > 0 or self.cutmix_alpha > 0) and self.mix_probability > 0

    @property
    def policy(self) -> RandAugment | AutoAugment | ColorJitter | None:
        """The policy that draws each image's operations."""
        if self.rand_augment:
            return RandAugment.parse(self.rand_augment)
        if self.auto_augment:
            return AutoAugment.parse(self.auto_augment)
        return ColorJitter(self.color_jitter) if self.color_jitter > 0 else None

    def draw_operations(self, key: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        """Returns the operations that a call with this key applies to the rows at int32[B] positions; None if disabled.

        (int32[B, L] indices into OPERATIONS, or SKIP; arguments float32[B, L])
        """
        return self.policy.draw(_keys_of_rows(key, positions)[1]) if self.policy else None

    def __call__(
        self,
        key: jax.Array,
        images: jax.Array,
        labels: jax.Array,
        mesh: Mesh | None = None,
        axis: str | tuple[str, ...] = "data",
    ) -> tuple[jax.Array, jax.Array]:
        """Augments one global batch to (images float32[B, H, W, 3], targets float32[B, num_classes]).

        The result depends on the key and on a row's position in the batch, not on the mesh.

        Args:
            key: the step's PRNG key.
            images: uint8[B, H, W, 3].
            labels: int32[B].
            mesh: required if the batch is sharded over several devices: each then augments its own rows. Without it XLA gathers
                the whole batch on every device, because images are augmented in a loop.
            axis: the mesh axis or axes that split the batch; their size divides B.

        Raises ValueError if B is not a multiple of group_size while mixing is enabled.
        """
        batch_size, height, width, _ = images.shape
        if self.mixes and batch_size % self.group_size:
            raise ValueError(f"augment.group_size: {self.group_size} does not divide the batch of {batch_size} images")

        augment = functools.partial(self._augment_images, plan=plans.choose_plan(self.plan, mesh))
        if mesh is not None:
            rows = PartitionSpec(axis)
            augment = jax.shard_map(augment, mesh=mesh, in_specs=(PartitionSpec(), rows, rows), out_specs=rows)
        images = augment(key, images, jnp.arange(batch_size))

        targets = mixing.smoothed_one_hot(labels, self.num_classes, self.label_smoothing)
        if self.unlabelled:
            targets = jnp.where(labels[:, None] >= 0, targets, 0.0)
        if self.mixes:
            mix = mixing.draw_mix_of_rows(
                jax.random.fold_in(key, _MIX),
                batch_size,
                self.group_size,
                self.mix_mode,
                (height, width),
                mixup_alpha=self.mixup_alpha,
                cutmix_alpha=self.cutmix_alpha,
                mix_probability=self.mix_probability,
                switch_probability=self.switch_probability,
            )
            images = mixing.mix_images(images, mix, self.group_size)
            targets = mixing.mix_targets(targets, mix, self.group_size)
        return images, targets

    def _augment_images(self, key: jax.Array, images: jax.Array, positions: jax.Array, *, plan: str) -> jax.Array:
        """Augments each image individually: uint8[B, H, W, 3] at int32[B] positions to float32[B, H, W, 3]."""
        flip, operations, box, noise = _keys_of_rows(key, positions)
        if self.flip_probability > 0:
            images = flip_horizontally(flip, images, self.flip_probability)
        if self.policy:
            fill = tuple(min(255, round(255 * value)) for value in self.mean)
            images = plans.apply_operations(images, *self.policy.draw(operations), fill, plan)
        images = normalize(images, self.mean, self.std)
        if self.erase_probability > 0:
            _, height, width, _ = images.shape
            boxes = erasing.draw_boxes(box, self.erase_probability, (height, width), self.erase_count)
            images = erasing.erase(noise, images, boxes, self.erase_mode)
        return images


def _keys_of_rows(key: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns keys[4, B]: for each row's flip, operations, erased box and its noise."""
    # All keys in two calls: every call compiles another generator.
    stages = fold_in_each(key, jnp.arange(_STAGES_OF_A_ROW))
    return jax.vmap(fold_in_each, in_axes=(0, None))(stages, positions)


def prepare_for_evaluation(
    images: jax.Array | np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
    """Normalises a batch: uint8[B, H, W, 3] to float32[B, H, W, 3]."""
    return normalize(images, mean, std)


def flip_horizontally(keys: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Mirrors each image left to right with the given probability in [0, 1]; keys: keys[B], images: [B, H, W, C]."""
    flipped = jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys)
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)
