"""Collects answers until a shard is complete, gathers them from all processes, and writes them from the first."""

from __future__ import annotations

from typing import Any

import numpy as np

from deit_jax.answers.decisions import Decisions
from deit_jax.answers.files import CROPS, AnswersFolder, Facts
from deit_jax.answers.kinds import Answers
from deit_jax.answers.reading import rows_of, rows_of_crops
from deit_jax.data.joint_order import JointOrder
from deit_jax.data.sampling import TrainOrder
from deit_jax.parallel.distributed import from_main_process, gather_arrays
from deit_jax.parallel.host_rows import HostRows


class Recording:
    """Takes the answers of consecutive steps, and writes a complete shard when the next one starts.

    Args:
        folder, facts: where answers are written, and which.
        order, rows: the run's, and what this process reads of a batch.
    """

    def __init__(self, folder: AnswersFolder, facts: Facts, order: TrainOrder | JointOrder, rows: HostRows) -> None:
        self.folder, self.facts = folder, facts
        self._rows, self._crop_rows = rows_of(rows), rows_of_crops(order, rows)
        self._kept: list[tuple[int, Answers, np.ndarray, Any]] = []

    def note(self, step: int, answers: Answers, checksums: np.ndarray, classes: Any) -> None:
        """Takes the answers of a step, counted from 0; they may still be computed. All processes call it for the same steps.

        answers: global arrays [B, ...] on the mesh. checksums: uint32[B'] of the crops that this process has read.
        classes: a global array int32[B], from `target_classes`.
        """
        self.write_full_shard()  # whose last step the device has done by now, or nearly
        self._kept.append((step, answers, checksums, classes))

    def write_full_shard(self) -> None:
        """Writes the collected answers if they are a complete shard."""
        if not self._kept:
            return
        shard = self._kept[0][0] // self.facts.shard_steps
        first, end = self.facts.steps_of(shard)
        steps = [step for step, *_ in self._kept]
        if steps[-1] + 1 < end:
            return
        assert steps == list(range(first, end)), (steps[0], steps[-1], first, end)
        kind = self.facts.kind
        own = {name: np.stack([_own_rows(answers[name]) for _, answers, _, _ in self._kept]) for name in kind.arrays}
        classes = np.stack([_own_rows(classes) for *_, classes in self._kept])
        arrays = {name: self._gathered(self._rows, values) for name, values in own.items()}
        arrays[CROPS] = self._gathered(self._crop_rows, np.stack([checksums for _, _, checksums, _ in self._kept]))
        counts = Decisions.of(kind.decisions(own), classes, kind.num_classes).array()
        decisions = Decisions.from_array(np.sum(gather_arrays(counts, "the decisions"), axis=0))
        from_main_process(lambda: self.folder.write(self.facts, shard, arrays, decisions))
        self._kept.clear()

    def _gathered(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Returns all rows [steps, B, ...] from those of each process, [steps, B', ...]."""
        found = np.empty((len(values), self.facts.batch_size, *values.shape[2:]), values.dtype)
        for their_rows, theirs in zip(*(gather_arrays(each, "the answers") for each in (rows, values)), strict=True):
            found[:, their_rows] = theirs
        return found


def _own_rows(array: Any) -> np.ndarray:
    """Returns the rows of a global array [B, ...] that are on this process's devices, ascending."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])
