"""Which rows of each batch a process reads, and how they come to their mixing groups.

The devices of a process own some rows of the global batch; the sharding says which. The training order is dealt to mixing groups
in blocks (`deit_jax.data.sampling.TrainOrder`). Where every process owns whole blocks, each deals its rows as it reads them.
Elsewhere the rows of a block come from several processes: each hands over stretches of the order as they are, and the step deals
them on the devices. In both cases row n of the dealt batch is the same image.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from einops import rearrange
from jax.sharding import Mesh, Sharding

from deit_jax.data.sampling import Stretches
from deit_jax.parallel.sharding import split_rows

Deal = Callable[[Mapping[str, jax.Array]], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class HostRows:
    """What a process reads of each global batch.

    Attributes:
        stretches: the rows that its devices own; with `dealt` False, the positions of the order that they hold instead.
        dealt: whether the process puts each image into its row of the mixing groups itself; it owns whole blocks then.
    """

    stretches: Stretches
    dealt: bool = True

    @property
    def count(self) -> int:
        """How many rows these are."""
        return sum(stop - start for start, stop in self.stretches)


def owned_rows(sharding: Sharding, rows: int) -> dict[int, Stretches]:
    """The rows of a batch of `rows` that the devices of each process own, by the process's number."""
    owned: dict[int, set[tuple[int, int]]] = {}
    device: Any  # jax.Device, whose type says nothing of its process
    for device, index in sharding.devices_indices_map((rows,)).items():
        start, stop, _ = index[0].indices(rows)
        owned.setdefault(device.process_index, set()).add((start, stop))
    return {process: _joined(sorted(parts)) for process, parts in owned.items()}


def _joined(parts: list[tuple[int, int]]) -> Stretches:
    """The same rows in as few stretches as possible."""
    joined: list[tuple[int, int]] = []
    for start, stop in parts:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return tuple(joined)


def host_rows(mesh: Mesh, rows: int, block: int = 1) -> dict[int, HostRows]:
    """What each process of a mesh reads of a batch of `rows`, by its number; all deal their rows themselves, or none does.

    block: rows of a block; 1: nothing is dealt, as in evaluation.
    """
    owned = owned_rows(split_rows(mesh), rows)
    whole = all(edge % block == 0 for stretches in owned.values() for edge in itertools.chain(*stretches))
    return {process: HostRows(stretches, whole) for process, stretches in owned.items()}


def deal_on_devices(mesh: Mesh, group_size: int, groups_per_block: int) -> Deal:
    """A function that moves a batch's rows [B, ...] from the order's positions to their mixing groups; to be called under jit.

    Position p of a block goes to group p % groups_per_block, so that rows cross between the devices that share a block.
    """

    def deal(rows: jax.Array) -> jax.Array:
        sizes = {"group": groups_per_block, "turn": group_size}
        rows = rearrange(rows, "(block turn group) ... -> (block group turn) ...", **sizes)
        return jax.lax.with_sharding_constraint(rows, split_rows(mesh))

    return lambda batch: {name: deal(rows) for name, rows in batch.items()}


def gathers_rows(mesh: Mesh, deal: Deal, rows: int) -> bool:
    """Whether XLA has every device gather all rows of a batch to deal them, where it finds no exchange in parts."""
    # Small images: their size does not matter.
    pixels = jax.ShapeDtypeStruct((rows, 8, 8, 3), np.uint8, sharding=split_rows(mesh))
    text = jax.jit(deal).lower({"image": pixels}).compile().as_text() or ""
    return "all-gather" in text or "all-reduce" in text  # XLA gathers small arrays by adding them
