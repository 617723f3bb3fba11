"""Which image goes where in which step: pure index arithmetic, no files and no state.

The order is the released code's (facebookresearch/deit `samplers.py`, RASampler): a permutation of the data set, every index
repeated in place, cut off after about as many entries as the data set has images. Ranks there take every W-th entry, so that
the global batch of step t is a contiguous stretch of this list, whatever the number of ranks.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

# The reference rounds an epoch down to a multiple of this, a leftover of MultiGrain that the published runs had.
_SELECTED_MULTIPLE = 256
# Keeps the order's random stream apart from others that start from the same seed.
_ORDER_STREAM = 0x0D0E
_MAX_SEED = 2**63


class Positions(NamedTuple):
    """Consecutive positions of one step's batch.

    `image_index` int64 `[n]` is the image, `copy` int32 `[n]` which of its repeats, `row` int32 `[n]` the row of the global
    batch that the position is dealt to.
    """

    image_index: np.ndarray
    copy: np.ndarray
    row: np.ndarray


Stretches = tuple[tuple[int, int], ...]  # [start, stop) of each, ascending, without overlap


class Chunk(NamedTuple):
    """Consecutive rows `start` to `stop - 1` of a batch, of the stretch `[first, last)`; `row + offset` counts the host's own."""

    start: int
    stop: int
    first: int
    last: int
    offset: int


def chunks_of(stretches: Stretches, batch_size: int, longest: int) -> tuple[Chunk, ...]:
    """The rows of a host, each stretch cut into the fewest chunks of at most `longest` rows, as even as they can be.

    Raises ValueError if a batch does not have such rows.
    """
    edges = [edge for stretch in stretches for edge in stretch]
    if not edges or edges != sorted(edges) or edges[0] < 0 or edges[-1] > batch_size:
        raise ValueError(f"no rows {stretches} in batches of {batch_size}")
    chunks, before = [], 0  # rows of the stretches before
    for first, last in stretches:
        count = math.ceil((last - first) / longest)
        edges = [first + (last - first) * i // count for i in range(count + 1)]
        chunks += [Chunk(start, stop, first, last, before - first) for start, stop in itertools.pairwise(edges)]
        before += last - first
    return tuple(chunks)


def selected_positions(num_examples: int) -> int:
    """Length of one epoch's order: `num_examples` rounded down to a multiple of 256, or all where there are fewer."""
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
    """The group size and the groups per block of an order: what is given, and for the rest what divides the batch.

    A block has 4 groups, or as many as there are repeats if these are more, where that number divides the batch; else the
    fewest that do. A group is the largest, up to `largest_group`, that divides what is left.

    Args:
        batch_size: rows of the global batch.
        repeats: copies of an image in the order; a block has at least as many groups.
        largest_group: rows of a group at most, if `group_size` is None.
        group_size: rows of a group; None: to be found.
        groups_per_block: None: to be found.
        mixes: whether the rows of a group are mixed in pairs, so that their number is even.

    Raises:
        ValueError: a batch that no such sizes divide; the message names the config fields. `TrainOrder` checks given sizes.
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
            f"augment.max_group_size={largest_group}: rows of a group are mixed in pairs; give 2 or more, or switch mixing off"
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
        f"{repeats} group{'s' * (repeats > 1)} a block: give another batch size, such as a multiple of {multiple}"
    )


def batch_of_larger_groups(
    batch_size: int, repeats: int, largest_group: int, groups_per_block: int | None = None
) -> int | None:
    """A somewhat smaller batch, for one whose few divisors make its mixing groups tiny; None for all other batches.

    Tiny is less than a quarter of `largest_group`, or of the rows that a block of 4 groups (or as many as there are repeats, or
    `groups_per_block`) would give each, if these are fewer. The arguments are those of `mixing_sizes`, which must find sizes.
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
    """All of them, in order."""
    small = [i for i in range(1, math.isqrt(number) + 1) if number % i == 0]
    return sorted({*small, *(number // i for i in small)})


# Two epochs: chunks of the old and the new one are read side by side at a border. At module level, so that pickling an order
# for a worker does not carry the permutation.
@functools.lru_cache(maxsize=2)
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    permutation = np.random.default_rng((_ORDER_STREAM, seed, epoch)).permutation(num_examples)
    permutation.flags.writeable = False
    return permutation


@dataclasses.dataclass(frozen=True)
class TrainOrder:
    """The training order: step and position in the batch -> image, copy and row.

    A batch is built of blocks of `groups_per_block * group_size` consecutive positions. Position p of a block is dealt to
    group `p % groups_per_block`, so that the copies of an image, which are neighbours in the order, share a block (save at its
    border) and never a mixing group; in the reference they are on neighbouring ranks.

    Attributes:
        num_examples: images in the data set.
        batch_size: rows of the global batch, repeats counted (`train.batch_size`).
        repeats: copies of an image in the order (`data.repeats`).
        group_size: consecutive rows that share one mixing draw (`augment.group_size`).
        groups_per_block: groups that a block is dealt to (`augment.groups_per_block`).
        seed: of the permutations and of the loader's crops; 0 or more.
        epoch_steps: steps of an epoch; None: as many as its positions make whole batches. A run that goes on with more or fewer
            images than it began with keeps the length of its epochs, which take some images twice if there are too few.

    Raises:
        ValueError: the sizes do not fit together; the message names the config fields.
    """

    num_examples: int
    batch_size: int
    repeats: int
    group_size: int
    groups_per_block: int
    seed: int
    epoch_steps: int | None = None

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
            raise ValueError(f"seed={self.seed}: give a whole number from 0 to {_MAX_SEED - 1}")
        if self.groups_per_block < self.repeats:
            raise ValueError(
                f"augment.groups_per_block={self.groups_per_block} is less than data.repeats={self.repeats}: copies of an "
                "image would be mixed with each other; give at least as many groups as repeats"
            )
        if self.batch_size % self.block_size:
            raise ValueError(
                f"train.batch_size={self.batch_size} is not a multiple of augment.group_size * augment.groups_per_block = "
                f"{self.group_size} * {self.groups_per_block} = {self.block_size}; change one of the three, or leave the two "
                "out, which then follow from the batch"
            )
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"train.batch_size={self.batch_size} is more than the {selected_positions(self.num_examples)} positions of "
                f"an epoch (data set of {self.num_examples} images); use a smaller batch or a larger data set"
            )

    @property
    def block_size(self) -> int:
        """Positions of a block."""
        return self.group_size * self.groups_per_block

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one epoch's order; what is left over is dropped, as in the reference."""
        if self.epoch_steps is not None and self.num_examples:
            return self.epoch_steps
        return selected_positions(self.num_examples) // self.batch_size

    def positions(self, step: int, start: int = 0, stop: int | None = None) -> Positions:
        """Positions `start` to `stop - 1` of the batch of `step`; by default all of them. Costs the same for any step.

        Args:
            step: training step, from 0, over all epochs.
            start: first position in the batch.
            stop: one past the last position; None is `batch_size`.
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
        permutation = _permutation(self.num_examples, self.seed, epoch)
        if self.epoch_steps is not None:
            image %= self.num_examples
        return Positions(permutation[image].astype(np.int64), copy.astype(np.int32), row.astype(np.int32))
