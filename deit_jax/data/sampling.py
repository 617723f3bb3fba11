"""Which image is in which row of which step: pure index arithmetic, without files or state.

The order follows the released code (facebookresearch/deit `samplers.py`, RASampler): a permutation of the data set, every index
repeated in place, truncated to about the data set's size. There, each of W ranks takes every W-th entry, so the global batch of
step t is a contiguous part of this list for any number of ranks.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

# The reference, and so the published runs, round an epoch down to a multiple of this, a remnant of MultiGrain.
_SELECTED_MULTIPLE = 256
# Separates the order's random stream from others with the same seed.
ORDER_STREAM = 0x0D0E
_MAX_SEED = 2**63


class Positions(NamedTuple):
    """Consecutive positions of one step's batch.

    `image_index` int64 `[n]` is the image, `copy` int32 `[n]` the index of its repeat, `row` int32 `[n]` the row of the global
    batch that the position is dealt to.
    """

    image_index: np.ndarray
    copy: np.ndarray
    row: np.ndarray


Stretches = tuple[tuple[int, int], ...]  # [start, stop) of each, ascending, disjoint


class Chunk(NamedTuple):
    """Rows `start` to `stop - 1` of a batch, within the stretch `[first, last)`; `row + offset` is the host's local row."""

    start: int
    stop: int
    first: int
    last: int
    offset: int


def chunks_of(stretches: Stretches, batch_size: int, longest: int) -> tuple[Chunk, ...]:
    """Splits a host's stretches of rows into the fewest, even chunks of at most `longest` rows.

    Raises ValueError if a batch does not have such rows.
    """
    edges = [edge for stretch in stretches for edge in stretch]
    if not edges or edges != sorted(edges) or edges[0] < 0 or edges[-1] > batch_size:
        raise ValueError(f"no rows {stretches} in batches of {batch_size}")
    chunks, before = [], 0  # rows of the previous stretches
    for first, last in stretches:
        count = math.ceil((last - first) / longest)
        edges = [first + (last - first) * i // count for i in range(count + 1)]
        chunks += [Chunk(start, stop, first, last, before - first) for start, stop in itertools.pairwise(edges)]
        before += last - first
    return tuple(chunks)


def selected_positions(num_examples: int) -> int:
    """Returns the length of one epoch's order: `num_examples` rounded down to a multiple of 256, or all if there are fewer."""
    return num_examples // _SELECTED_MULTIPLE * _SELECTED_MULTIPLE or num_examples


def mixing_sizes(
    batch_size: int,
    repeats: int,
    largest_group: int,
    *,
    group_size: int | None = None,
    groups_per_block: int | None = None,
    mixes: bool = True,
) -> tuple[int, int]:
    """Returns the group size and the groups per block of an order: the given values, or values that divide the batch.

    A block has 4 groups, or as many as there are repeats if that is more, provided that this number divides the batch; otherwise
    the smallest number that does. A group is the largest, up to `largest_group`, that divides the rest.

    Args:
        batch_size: rows of the global batch.
        repeats: copies of an image in the order; a block has at least as many groups.
        largest_group: maximum rows per group, if `group_size` is None.
        group_size: rows per group; None: chosen here.
        groups_per_block: None: chosen here.
        mixes: whether the rows of a group are mixed in pairs, which requires an even number.

    Raises:
        ValueError: no such sizes divide the batch; the message names the config fields. `TrainOrder` checks given sizes.
    """
    if group_size is not None and groups_per_block is not None:
        return group_size, groups_per_block
    divisors = _divisors(batch_size)
    counts = [count for count in (max(4, repeats), *divisors) if count >= repeats and batch_size % count == 0]
    for count in counts if groups_per_block is None else [groups_per_block]:
        if batch_size % (count * (group_size or 1)):
            continue
        if group_size is not None:
            return group_size, count
        sizes = [size for size in divisors if size <= largest_group and batch_size % (count * size) == 0]
        even = [size for size in sizes if size % 2 == 0]
        if even or (sizes and not mixes):
            return max(even or sizes), count
    if mixes and group_size is None and largest_group < 2:
        raise ValueError(
            f"augment.max_group_size={largest_group}: rows of a group are mixed in pairs; set 2 or more, or disable mixing"
        )
    given = "".join(
        f", augment.{name}={value}"
        for name, value in (("group_size", group_size), ("groups_per_block", groups_per_block))
        if value is not None
    )
    rows = "" if group_size is None else f" of {group_size} rows"
    if mixes and group_size is None:
        rows = " of an even number of rows"
    number = max(groups_per_block or 4, repeats)
    multiple = number * (group_size or (2 if mixes else 1))
    raise ValueError(
        f"train.batch_size={batch_size} with data.repeats={repeats}{given} cannot be divided into mixing groups{rows}, at least "
        f"{repeats} group{'s' * (repeats > 1)} per block: use another batch size, such as a multiple of {multiple}"
    )


def batch_of_larger_groups(
    batch_size: int, repeats: int, largest_group: int, groups_per_block: int | None = None
) -> int | None:
    """Returns a somewhat smaller batch size if the batch has so few divisors that its mixing groups are tiny; else None.

    Tiny means less than a quarter of `largest_group` or of the rows per group if the batch were one block of 4 groups (or
    `repeats` if more, or `groups_per_block`), whichever is less. The arguments are those of `mixing_sizes`, which must succeed.
    """
    groups = groups_per_block or max(4, repeats)

    def is_poor(batch: int) -> bool:
        group, _ = mixing_sizes(batch, repeats, largest_group, groups_per_block=groups_per_block)
        return 4 * group < min(largest_group, batch // groups)

    if not is_poor(batch_size):
        return None
    step = 2 * groups
    return next(batch for batch in range(batch_size // step * step, 0, -step) if not is_poor(batch))


def _divisors(number: int) -> list[int]:
    """Returns all divisors in ascending order."""
    small = [i for i in range(1, math.isqrt(number) + 1) if number % i == 0]
    return sorted({*small, *(number // i for i in small)})


# Two entries for each of two kinds of images, because chunks of two epochs are read concurrently at a boundary. At module level,
# so that a pickled order does not include the permutation.
@functools.lru_cache(maxsize=4)
def _permutation(num_examples: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    permutation = np.random.default_rng((stream, seed, epoch)).permutation(num_examples)
    permutation.flags.writeable = False
    return permutation


@dataclasses.dataclass(frozen=True)
class TrainOrder:
    """The training order: maps step and position in the batch to image, copy and row.

    A batch consists of blocks of `groups_per_block * group_size` consecutive positions. Position p of a block is dealt to group
    `p % groups_per_block`. So the copies of an image, which are consecutive in the order, share a block (except at its boundary)
    but never a mixing group; in the reference they are on neighboring ranks.

    Attributes:
        num_examples: images in the data set.
        batch_size: rows of the global batch, including repeats (`train.batch_size`).
        repeats: copies of an image in the order (`data.repeats`).
        group_size: consecutive rows that share one mixing draw (`augment.group_size`).
        groups_per_block: groups that a block is dealt to (`augment.groups_per_block`).
        seed: of the permutations and of the loader's crops; at least 0.
        epoch_steps: steps per epoch; None: the number of whole batches in its positions. A resumed run with more or fewer images
            than before keeps the length of its epochs, which repeat some images if there are too few.
        stream: separates the permutations from those of other orders with the same seed.

    Raises:
        ValueError: inconsistent sizes; the message names the config fields.
    """

    num_examples: int
    batch_size: int
    repeats: int
    group_size: int
    groups_per_block: int
    seed: int
    epoch_steps: int | None = None
    stream: int = ORDER_STREAM

    def __post_init__(self) -> None:
        for field, name in (
            ("batch_size", "train.batch_size"),
            ("repeats", "data.repeats"),
            ("group_size", "augment.group_size"),
            ("groups_per_block", "augment.groups_per_block"),
        ):
            if getattr(self, field) < 1:
                raise ValueError(f"{name}={getattr(self, field)}: give 1 or more")
        if not 0 <= self.seed < _MAX_SEED:
            raise ValueError(f"seed={self.seed}: give an integer from 0 to {_MAX_SEED - 1}")
        if self.groups_per_block < self.repeats:
            raise ValueError(
                f"augment.groups_per_block={self.groups_per_block} is less than data.repeats={self.repeats}: copies of an "
                "image would be mixed with each other; use at least as many groups as repeats"
            )
        if self.batch_size % self.block_size:
            raise ValueError(
                f"train.batch_size={self.batch_size} is not a multiple of augment.group_size * augment.groups_per_block = "
                f"{self.group_size} * {self.groups_per_block} = {self.block_size}; change one of the three, or unset the last "
                "two, which are then chosen for the batch"
            )
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"train.batch_size={self.batch_size} exceeds the {selected_positions(self.num_examples)} positions of an "
                f"epoch (data set of {self.num_examples} images); use a smaller batch or a larger data set"
            )

    @property
    def block_size(self) -> int:
        """Positions per block."""
        return self.group_size * self.groups_per_block

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one epoch's order; the remainder is dropped, as in the reference."""
        if self.epoch_steps is not None and self.num_examples:
            return self.epoch_steps
        return selected_positions(self.num_examples) // self.batch_size

    def end_of_copies(self, step: int, position: int) -> int:
        """Returns the first position at or after `position` of the batch of `step` at which another image begins."""
        entry = step % self.steps_per_epoch * self.batch_size + position
        return position + -entry % self.repeats

    def positions(self, step: int, start: int = 0, stop: int | None = None) -> Positions:
        """Returns positions `start` to `stop - 1` of the batch of `step`, by default all; the cost does not depend on the step.

        Args:
            step: training step, from 0, over all epochs.
            start: first position in the batch.
            stop: one past the last position; None: `batch_size`.
        """
        stop = self.batch_size if stop is None else stop
        if step < 0 or not 0 <= start <= stop <= self.batch_size:
            raise ValueError(f"no positions {start} to {stop} of step {step} in batches of {self.batch_size}")
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        position = np.arange(start, stop)
        entry = step_in_epoch * self.batch_size + position
        image, copy = np.divmod(entry, self.repeats)
        block, in_block = np.divmod(position, self.block_size)
        turn, group = np.divmod(in_block, self.groups_per_block)
        row = block * self.block_size + group * self.group_size + turn
        permutation = _permutation(self.num_examples, self.seed, epoch, self.stream)
        if self.epoch_steps is not None:
            image %= self.num_examples
        return Positions(permutation[image].astype(np.int64), copy.astype(np.int32), row.astype(np.int32))
