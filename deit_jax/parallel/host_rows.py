"""Which rows of each batch a process reads, and how the rows get to their mixing groups.

The sharding determines which rows of the global batch the devices of a process own. The training order deals images to mixing
groups in blocks (`deit_jax.data.sampling.TrainOrder`). If every process owns whole blocks, each deals its rows while reading.
Otherwise the rows of a block come from several processes: each reads consecutive positions of the order, and the step deals them
on the devices. In both cases row n of the dealt batch is the same image.
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
        stretches: the rows that its devices own; if `dealt` is False, their positions in the order instead.
        dealt: whether the process itself puts each image into its row of the mixing groups; it then owns whole blocks.
    """

    stretches: Stretches
    dealt: bool = True

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(stop - start for start, stop in self.stretches)


def owned_rows(sharding: Sharding, rows: int) -> dict[int, Stretches]:
    """Returns the rows of a batch of `rows` that each process's devices own, by process number."""
    owned: dict[int, set[tuple[int, int]]] = {}
    device: Any  # jax.Device, whose type lacks process_index
    for device, index in sharding.devices_indices_map((rows,)).items():
        start, stop, _ = index[0].indices(rows)
        owned.setdefault(device.process_index, set()).add((start, stop))
    return {process: _joined(sorted(parts)) for process, parts in owned.items()}


def _joined(parts: list[tuple[int, int]]) -> Stretches:
    """Merges adjacent stretches."""
    joined: list[tuple[int, int]] = []
    for start, stop in parts:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return tuple(joined)


def host_rows(mesh: Mesh, rows: int, block: int = 1) -> dict[int, HostRows]:
    """Returns what each process of a mesh reads of a batch of `rows`, by process number; either all deal their rows or none.

    block: rows per block; 1: nothing is dealt, as in evaluation.
    """
    owned = owned_rows(split_rows(mesh), rows)
    whole = all(edge % block == 0 for stretches in owned.values() for edge in itertools.chain(*stretches))
    return {process: HostRows(stretches, whole) for process, stretches in owned.items()}


def deal_on_devices(mesh: Mesh, group_size: int, groups_per_block: int) -> Deal:
    """Returns a function, for use under jit, that moves a batch's rows [B, ...] from order positions to mixing groups.

    Position p of a block goes to group p % groups_per_block, so rows move only between devices that share a block.
    """

    def deal(rows: jax.Array) -> jax.Array:
        sizes = {"group": groups_per_block, "turn": group_size}
        rows = rearrange(rows, "(block turn group) ... -> (block group turn) ...", **sizes)
        return jax.lax.with_sharding_constraint(rows, split_rows(mesh))

    return lambda batch: {name: deal(rows) for name, rows in batch.items()}


def gathers_rows(mesh: Mesh, deal: Deal, rows: int) -> bool:
    """Whether XLA gathers all rows of a batch on every device to deal them, if it finds no partial exchange."""
    # Small images: the size does not matter.
    pixels = jax.ShapeDtypeStruct((rows, 8, 8, 3), np.uint8, sharding=split_rows(mesh))
    text = jax.jit(deal).lower({"image": pixels}).compile().as_text() or ""
    return "all-gather" in text or "all-reduce" in text  # XLA gathers small arrays by adding them
