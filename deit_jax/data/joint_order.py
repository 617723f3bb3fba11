"""The order of a training with unlabelled images: each batch has rows of both kinds, and each kind has its own order.

A batch consists of equal parts. A part has whole blocks of labelled images and whole blocks of unlabelled ones (`TrainOrder`
explains blocks and mixing groups). The mixing groups of both kinds are spread evenly over the part's rows, so that devices and
microbatches get both kinds in the same proportion if the groups are small enough.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from deit_jax.data.sampling import Positions, TrainOrder, mixing_sizes, selected_positions

UNLABELLED_STREAM = 0x0D0F  # as sampling.ORDER_STREAM
# A batch is divided into at most this many equal slices of one kind each if images are mixed: more allow a closer share of
# unlabelled rows, but only smaller mixing groups.
_SLICES = 16


def unlabelled_rows(
    batch_size: int,
    share: float,
    repeats: int,
    *,
    group_size: int | None = None,
    groups_per_block: int | None = None,
    mixes: bool = True,
) -> int:
    """Returns how many rows of a batch are unlabelled: the number nearest to the share that mixing groups of one kind allow.

    Args:
        batch_size: rows of the global batch.
        share: between 0 and 1.
        repeats, group_size, groups_per_block, mixes: see `sampling.mixing_sizes`.

    Raises:
        ValueError: the batch cannot be divided into both kinds; the message names the config fields.
    """
    block = (group_size or 1) * (groups_per_block or 1)
    for slices in range(min(batch_size, _SLICES if mixes else batch_size), 1, -1):
        if batch_size % slices or batch_size // slices % block:
            continue
        try:
            mixing_sizes(
                batch_size // slices, repeats, 2, group_size=group_size, groups_per_block=groups_per_block, mixes=mixes
            )
        except ValueError:
            continue
        return min(max(round(share * slices), 1), slices - 1) * (batch_size // slices)
    groups = groups_per_block or max(4, repeats)
    multiple = 2 * groups * (group_size or (2 if mixes else 1))
    raise ValueError(
        f"train.batch_size={batch_size} with data.repeats={repeats} cannot be divided into mixing groups of labelled and of "
        f"unlabelled images (unlabelled.share={share:g}): use another batch size, such as a multiple of {multiple}"
    )


def joint_mixing_sizes(
    batch_size: int,
    unlabelled: int,
    repeats: int,
    largest_group: int,
    *,
    group_size: int | None = None,
    groups_per_block: int | None = None,
    mixes: bool = True,
) -> tuple[int, int]:
    """Returns the group size and the groups per block of both kinds; `unlabelled` is the result of `unlabelled_rows`.

    Without mixing a group is one row, so that the kinds alternate as finely as possible. The other arguments are those of
    `sampling.mixing_sizes`, and so is the ValueError.
    """
    return mixing_sizes(
        math.gcd(unlabelled, batch_size - unlabelled),
        repeats,
        largest_group if mixes else 1,
        group_size=group_size,
        groups_per_block=groups_per_block,
        mixes=mixes,
    )


@dataclasses.dataclass(frozen=True)
class JointOrder:
    """Which image is in which row of which step, for batches of labelled and unlabelled rows.

    Images are numbered through: the labelled ones first (as in `unlabelled.JointSource`). Both orders depend on the seed, the
    step and their own number of images alone. An epoch is one of the labelled images.

    Attributes:
        labelled, unlabelled: the orders of both kinds, of equal group sizes and groups per block; together they fill a batch.
        by_row: position p of a batch is its row p. Otherwise the positions of a part come first of its labelled images, then of
            its unlabelled ones, so that the copies of an image are consecutive.

    Raises:
        ValueError: inconsistent orders.
    """

    labelled: TrainOrder
    unlabelled: TrainOrder
    by_row: bool = False

    def __post_init__(self) -> None:
        sizes = {(order.group_size, order.groups_per_block) for order in (self.labelled, self.unlabelled)}
        if len(sizes) > 1:
            raise ValueError(f"labelled and unlabelled images have different mixing groups: {sorted(sizes)}")

    @classmethod
    def of(cls, labelled: TrainOrder, num_unlabelled: int, rows: int) -> JointOrder:
        """Adds `rows` unlabelled rows per batch, of `num_unlabelled` images, to an order of the labelled rows.

        Raises ValueError, with the names of the config fields, if there are fewer unlabelled images than rows.
        """
        if (there := selected_positions(num_unlabelled)) < rows:
            raise ValueError(
                f"unlabelled.path: a batch has {rows} unlabelled rows, which exceed the {there} positions of one pass over the "
                f"{num_unlabelled:,} unlabelled images; reduce unlabelled.share or train.batch_size, or add images"
            )
        own = dataclasses.replace(
            labelled, num_examples=num_unlabelled, batch_size=rows, epoch_steps=None, stream=UNLABELLED_STREAM
        )
        return cls(labelled, own)

    @property
    def num_examples(self) -> int:
        """Images of both kinds."""
        return self.labelled.num_examples + self.unlabelled.num_examples

    @property
    def batch_size(self) -> int:
        """Rows of the global batch."""
        return self.labelled.batch_size + self.unlabelled.batch_size

    @property
    def repeats(self) -> int:
        """Copies of an image in its order."""
        return self.labelled.repeats

    @property
    def group_size(self) -> int:
        """Consecutive rows that share one mixing draw; all of one kind."""
        return self.labelled.group_size

    @property
    def groups_per_block(self) -> int:
        """Groups that consecutive copies of an image are dealt to."""
        return self.labelled.groups_per_block

    @property
    def seed(self) -> int:
        """Of the permutations and of the loader's crops."""
        return self.labelled.seed

    @property
    def block_size(self) -> int:
        """Positions per part, whose images are in the same rows."""
        return 1 if self.by_row else self._part

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch's order of the labelled images."""
        return self.labelled.steps_per_epoch

    @property
    def _part(self) -> int:
        return self.batch_size // self._parts

    @property
    def _parts(self) -> int:
        return math.gcd(self.labelled.batch_size, self.unlabelled.batch_size) // self.labelled.block_size

    def is_unlabelled(self) -> np.ndarray:
        """Returns which rows of a batch are unlabelled: bool `[batch_size]`, the same in every step."""
        found = np.zeros(self.batch_size, bool)
        found[self._rows()[1]] = True
        return found

    def for_stretches(self, edges: list[int]) -> JointOrder:
        """Returns the order by row unless the edges of the rows that a host reads are those of whole parts."""
        whole = all(edge % self.block_size == 0 for edge in edges)
        return self if whole else dataclasses.replace(self, by_row=True)

    def end_of_copies(self, step: int, position: int) -> int:
        """Returns a position at or after `position` at which another image begins, or images of the other kind."""
        if self.by_row:
            return position
        part, inside = divmod(position, self._part)
        first = self.labelled.batch_size // self._parts  # labelled positions of a part
        order, start, length = (
            (self.labelled, inside, first) if inside < first else (self.unlabelled, inside - first, self._part - first)
        )
        own = part * length + start
        return position + (min(order.end_of_copies(step, own) - own, length - start) if start else 0)

    def positions(self, step: int, start: int = 0, stop: int | None = None) -> Positions:
        """Returns positions `start` to `stop - 1` of the batch of `step`: first the labelled ones, then the unlabelled ones.

        The arguments are those of `TrainOrder.positions`.
        """
        stop = self.batch_size if stop is None else stop
        if step < 0 or not 0 <= start <= stop <= self.batch_size:
            raise ValueError(f"no positions {start} to {stop} of step {step} in batches of {self.batch_size}")
        orders = (self.labelled, self.unlabelled)
        bounds = [(0, order.batch_size) for order in orders]
        if not self.by_row:
            (first, last) = (self._labelled_before(edge) for edge in (start, stop))
            bounds = [(first, last), (start - first, stop - last)]
        found = []
        for order, rows, offset, (begin, end) in zip(
            orders, self._rows(), (0, self.labelled.num_examples), bounds, strict=True
        ):
            image, copy, row = order.positions(step, begin, end)
            found.append((image + offset, copy, rows[row]))
        image, copy, row = (np.concatenate(parts) for parts in zip(*found, strict=True))
        if self.by_row:
            here = (row >= start) & (row < stop)
            image, copy, row = image[here], copy[here], row[here]
        return Positions(image, copy, row)

    def _labelled_before(self, position: int) -> int:
        part, inside = divmod(position, self._part)
        labelled = self.labelled.batch_size // self._parts
        return part * labelled + min(inside, labelled)

    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns, for each row of the labelled order and of the unlabelled one, the row of the batch: int32."""
        return _rows_of_kinds(self.labelled.batch_size, self.unlabelled.batch_size, self.group_size, self._parts)


@functools.lru_cache(maxsize=2)
def _rows_of_kinds(labelled: int, unlabelled: int, group_size: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    groups = (labelled + unlabelled) // parts // group_size  # per part
    number = np.arange(groups + 1) * (unlabelled // parts // group_size) // groups
    is_unlabelled = np.tile(np.diff(number) > 0, parts)
    kinds = []
    for of_kind in (np.flatnonzero(~is_unlabelled), np.flatnonzero(is_unlabelled)):
        rows = (of_kind[:, None] * group_size + np.arange(group_size)).reshape(-1).astype(np.int32)
        rows.flags.writeable = False
        kinds.append(rows)
    return kinds[0], kinds[1]
