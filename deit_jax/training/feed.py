"""Feeds the steps: a thread reads their batches and sends them to the devices while earlier steps compute."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from deit_jax.data.bad_images import BadImages
from deit_jax.data.reading_speed import ReadingSpeed
from deit_jax.parallel.in_advance import in_advance
from deit_jax.parallel.sharding import put_batch
from deit_jax.reporting.run_log import RunLog
from deit_jax.training.answering import Recorder, Replay, Sent
from deit_jax.training.first_images import log_first_images
from deit_jax.training.preparation import Opened, step_batches
from deit_jax.training.program import Program
from deit_jax.training.step import Batch


@dataclasses.dataclass(frozen=True)
class Feed:
    """The batches of a run's steps on the mesh."""

    opened: Opened
    program: Program
    log: RunLog
    answering: Replay | Recorder | None
    bad_images: BadImages
    reading: ReadingSpeed

    def batches(self, start: int, stretches: Sequence[tuple[int, int]]) -> Iterator[Batch | Sent]:
        """Yields the batches of the steps from `start` (counted from 0), in the given stretches of the order, see `Detours`.

        Logs the first images of step 0. Close the generator to stop the thread.
        """
        config = self.opened.config
        sent = self._sent(start, stretches)
        with contextlib.closing(in_advance(sent, config.data.batches_ahead)) as ahead:
            for step, batch, pictured in ahead:
                if pictured is not None:
                    source, rows = self.opened.train_source, self.program.host_rows
                    log_first_images(self.log, config, self.opened.plan, source, rows, pictured)
                # Answers are not added by the thread: all processes wait for them together.
                yield batch if self.answering is None else self.answering.received(step, batch)

    def _sent(
        self, start: int, stretches: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, Any, dict[str, np.ndarray] | None]]:
        """Yields steps, their batches on the mesh, and for step 0 the batch on the host, if its images are logged."""
        opened, program = self.opened, self.program
        pictures_due = start == 0 and self.log.shows_pictures
        for first, end in stretches:
            read: Any = step_batches(
                opened.config,
                opened.train_source,
                opened.plan,
                program.host_rows,
                first,
                end,
                self.bad_images,
                speed=self.reading,
                checksums=self.answering is not None,
            )
            with contextlib.closing(read):
                for step, batch in enumerate(read, first):
                    sent = put_batch(program.mesh, batch) if self.answering is None else self.answering.put(batch)
                    yield step, sent, batch if pictures_due else None
                    pictures_due = False
                    del batch, sent  # not kept while the next one is read
        self.bad_images.warn_of_total()
