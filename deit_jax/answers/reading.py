"""Reads recorded answers step by step, compares each row's crop, and waits for a recorder that is behind."""

from __future__ import annotations

import time
from pathlib import Path

import jax
import numpy as np

from deit_jax import console
from deit_jax.answers.files import CROPS, FACTS, AnswersError, AnswersFolder, Facts
from deit_jax.answers.kinds import Answers
from deit_jax.data.joint_order import JointOrder
from deit_jax.data.sampling import TrainOrder
from deit_jax.data.sources import DataError, ImageSource
from deit_jax.parallel.distributed import from_main_process
from deit_jax.parallel.host_rows import HostRows

_POLL = 0.5  # seconds between two looks for a shard
_SEEN_LATE = 20  # seconds in which a shared disk shows a file to other machines


def open_answers(path: str) -> tuple[AnswersFolder, Facts]:
    """Opens config.teacher.answers; returns the folder and its facts. Raises AnswersError if there are no answers."""
    folder = AnswersFolder(Path(path))
    facts = folder.facts()
    if facts is None:
        raise AnswersError(
            f"config.teacher.answers={path}: there is no {FACTS}; record them first (run.py --mode=record --output={path})"
        )
    return folder, facts


class RecordedAnswers:
    """The answers to this process's rows of each step.

    Args:
        folder, facts: see `open_answers`.
        order: of the run; the same as the recorder's.
        rows: what this process reads of a batch.
        source: the training images, for messages.
        timeout: seconds to wait for a shard while the recorder makes no progress.
    """

    def __init__(
        self,
        folder: AnswersFolder,
        facts: Facts,
        order: TrainOrder | JointOrder,
        rows: HostRows,
        source: ImageSource,
        timeout: int,
    ) -> None:
        self._folder, self._facts, self._order, self._source = folder, facts, order, source
        self._timeout = timeout
        self._rows, self._crop_rows = rows_of(rows), rows_of_crops(order, rows)
        self._shard: int | None = None
        self._arrays: dict[str, np.ndarray] = {}

    def of_step(self, step: int, checksums: np.ndarray) -> Answers:
        """Returns the answers to this process's rows of a step, counted from 0. All processes call it for the same steps.

        checksums: uint32[B'], of the crops as they were read. Raises AnswersError for a shard that is not written in time or is
        damaged, and DataError for a crop that differs from the one that the teacher answered.
        """
        shard = step // self._facts.shard_steps
        if shard != self._shard:
            from_main_process(lambda: self._wait(shard))
            self._arrays, self._shard = self._read(shard), shard
        at = step - self._facts.steps_of(shard)[0]
        seen = self._arrays[CROPS][at, self._crop_rows]
        (other,) = np.nonzero(seen != checksums)
        if other.size:
            self._refuse(step, int(self._crop_rows[other[0]]), other.size)
        return {name: values[at, self._rows] for name, values in self._arrays.items() if name != CROPS}

    def _read(self, shard: int) -> dict[str, np.ndarray]:
        until = time.monotonic() + _SEEN_LATE
        while jax.process_index() and not self._folder.has(shard) and time.monotonic() < until:
            time.sleep(_POLL)
        return self._folder.read(self._facts, shard)

    def _wait(self, shard: int) -> None:
        if self._folder.has(shard):
            return
        first, end = self._facts.steps_of(shard)
        what = f"the answers to steps {first + 1:,} to {end:,} in {self._folder}"
        console.say(f"waiting for {what}, which are not recorded yet")
        seen, since = self._folder.sign_of_life(), time.monotonic()
        while not self._folder.has(shard):
            time.sleep(_POLL)
            if (now := self._folder.sign_of_life()) != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > self._timeout:
                raise AnswersError(
                    f"{what} do not come: no recorder has written there for {self._timeout} s "
                    "(config.teacher.answers_timeout): start it (run.py --mode=record), then run this command again, which "
                    "continues from the last checkpoint"
                )

    def _refuse(self, step: int, row: int, count: int) -> None:
        where = self._order.positions(step)
        image = int(where.image_index[np.flatnonzero(where.row == row)[0]])
        more = f", and {count - 1} more" if count > 1 else ""
        raise DataError(
            f"step {step + 1:,}, row {row}: the crop of {self._source.describe(image)} is not the one that the teacher answered "
            f"in {self._folder}{more}: restore the image, and the libraries that decode it, or record the answers again"
        )


def rows_of(rows: HostRows) -> np.ndarray:
    """Returns the rows of the dealt batch that are on this process's devices, ascending: int64[B']."""
    return np.concatenate([np.arange(start, stop) for start, stop in rows.stretches])


def rows_of_crops(order: TrainOrder | JointOrder, rows: HostRows) -> np.ndarray:
    """Returns the rows of the dealt batch whose crops this process reads, in the order of its host's batch: int64[B']."""
    own = rows_of(rows)
    return own if rows.dealt else order.positions(0).row[own].astype(np.int64)
