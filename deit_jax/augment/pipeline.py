"""The augmentation of Table 9 (arXiv 2012.12877), in the order of the released code, and the evaluation's half of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from deit_jax.augment import erasing, mixing, plans
from deit_jax.augment.autoaugment import AutoAugment
from deit_jax.augment.color import normalize
from deit_jax.augment.jitter import ColorJitter
from deit_jax.augment.keys import fold_in_each
from deit_jax.augment.randaugment import RandAugment

# Every stage folds a tag of its own into the key before the row's or the group's number, so that stages are independent.
_STAGES_OF_A_ROW = 4  # flip, drawn operations, erased box, erased noise: tags 0 to 3
_MIX = 4


@dataclasses.dataclass(frozen=True)
class TrainAugmentation:
    """Flip, RandAugment (or AutoAugment, or colour jitter), normalise, erase, mix: from uint8 batches to network input.

    Fields carry the names of the configuration's `augment` section. Hashable, so it can be a static argument of jit.

    Attributes:
        num_classes: K, the width of the targets.
        mean: of RGB in [0, 1]; also gives the fill colour of RandAugment's geometric operations.
        std: of RGB in [0, 1].
        flip_probability: of a horizontal flip; 0 = off.
        rand_augment: timm's notation, see `RandAugment.parse`; "" = off.
        auto_augment: timm's notation, see `AutoAugment.parse`; "" = off.
        color_jitter: see `ColorJitter.strength`; 0 = off. At most one of these three is on.
        erase_probability: that an image gets an erased box; 0 = off.
        erase_mode: "pixel", "rand" or "const", see `erasing.erase`.
        erase_count: most boxes of an image, see `erasing.draw_boxes`.
        mixup_alpha: Beta parameter; 0 = off.
        cutmix_alpha: Beta parameter; 0 = off.
        mix_mode: who shares a mixing draw: "batch": a group; "pair": a row and its partner; "elem": nobody.
        mix_probability: that a group (a pair, a row) is mixed at all.
        switch_probability: that one that is mixed gets CutMix rather than mixup, when both are on.
        label_smoothing: eps.
        group_size: rows among which partners are, see `mixing`; even.
        plan: how operations are applied, see `plans`: "sequential", "chunked", or "auto": by the mesh's devices.

    Raises:
        ValueError: a value that cannot be used; one line that names the field as augment.<name>.
    """

    num_classes: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    flip_probability: float = 0.5
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    auto_augment: str = ""
    color_jitter: float = 0.0
    erase_probability: float = 0.25
    erase_mode: str = "pixel"
    erase_count: int = 1
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    mix_mode: str = "batch"
    mix_probability: float = 1.0
    switch_probability: float = 0.5
    label_smoothing: float = 0.1
    group_size: int = 256
    plan: str = "auto"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            object.__setattr__(self, name, values)  # a list would make the recipe unhashable
            if len(values) != 3:
                raise ValueError(f"augment.{name}: expected 3 values (RGB), got {len(values)}")
        if not all(0 <= value <= 1 for value in self.mean):
            raise ValueError(f"augment.mean: of pixels in [0, 1], got {self.mean}")
        if min(self.std) <= 0:
            raise ValueError(f"augment.std: must be above 0, got {self.std}")
        for name in ("flip_probability", "erase_probability", "mix_probability", "switch_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name}: must lie in [0, 1], got {getattr(self, name)}")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"augment.{name}: must be 0 (off) or above, got {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"augment.label_smoothing: must lie in [0, 1), got {self.label_smoothing}")
        if self.num_classes < 1:
            raise ValueError(f"num_classes: must be at least 1, got {self.num_classes}")
        for name, choices in (
            ("erase_mode", erasing.MODES),
            ("mix_mode", mixing.MODES),
            ("plan", ("auto", *plans.PLANS)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"augment.{name}: {getattr(self, name)!r} is none of {', '.join(choices)}")
        if self.erase_count < 1:
            raise ValueError(f"augment.erase_count: must be at least 1, got {self.erase_count}")
        if self.mixes and (self.group_size < 2 or self.group_size % 2):
            raise ValueError(f"augment.group_size: rows are mixed in pairs, so it must be even, got {self.group_size}")
        if not 0 <= self.color_jitter < float("inf"):
            raise ValueError(f"augment.color_jitter: must be 0 (off) or above, got {self.color_jitter}")
        on = [name for name in ("rand_augment", "auto_augment", "color_jitter") if getattr(self, name)]
        if len(on) > 1:
            raise ValueError(f"augment.{on[1]}: excludes augment.{on[0]}; turn one of them off")
        for name, policy in (("rand_augment", RandAugment), ("auto_augment", AutoAugment)):
            try:
                if getattr(self, name):
                    policy.parse(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"augment.{name}: {error}") from None

    @property
    def mixes(self) -> bool:
        """Whether targets can be mixtures of two labels."""
        return (self.mixup_alpha > 0 or self.cutmix_alpha > 0) and self.mix_probability > 0

    @property
    def policy(self) -> RandAugment | AutoAugment | ColorJitter | None:
        """What draws each image's operations."""
        if self.rand_augment:
            return RandAugment.parse(self.rand_augment)
        if self.auto_augment:
            return AutoAugment.parse(self.auto_augment)
        return ColorJitter(self.color_jitter) if self.color_jitter > 0 else None

    def draw_operations(self, key: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        """The operations that a call with this key applies to the rows at int32[B] positions; None if none are on.

        Returns:
            (numbers int32[B, L] of OPERATIONS, or SKIP; arguments float32[B, L]).
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
        """Augments one global batch.

        The values depend on the key and on a row's place in the batch, not on the mesh.

        Args:
            key: the step's PRNG key.
            images: uint8[B, H, W, 3].
            labels: int32[B].
            mesh: give it when the batch is spread over several devices: each then augments its own rows (without it
                XLA gathers the whole batch on every device, because images are augmented in a loop).
            axis: the mesh axis or axes that split the batch; their size divides B.

        Returns:
            (images float32[B, H, W, 3], targets float32[B, num_classes]).

        Raises:
            ValueError: B is not a multiple of group_size while mixing is on.
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
        """What happens to each image by itself: uint8[B, H, W, 3] at int32[B] positions to float32[B, H, W, 3]."""

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
    """keys[4, B]: of the flip, the drawn operations, the erased box and its noise, for each row."""
    # All keys in two calls: every call compiles a generator of its own.
    stages = fold_in_each(key, jnp.arange(_STAGES_OF_A_ROW))
    return jax.vmap(fold_in_each, in_axes=(0, None))(stages, positions)


def prepare_for_evaluation(
    images: jax.Array | np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
    """Normalises a batch and nothing else: uint8[B, H, W, 3] to float32[B, H, W, 3]."""
    return normalize(images, mean, std)


def flip_horizontally(keys: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Mirrors each image left to right with the given probability.

    Args:
        keys: keys[B], one an image.
        images: [B, H, W, C] of any dtype.
        probability: in [0, 1].

    Returns:
        [B, H, W, C].
    """
    flipped = jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys)
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)
