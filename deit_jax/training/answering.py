"""A step in three programs, so that a teacher's answers can be recorded and replayed exactly.

AUGMENT computes the networks' images and targets from a batch. THE TEACHER computes logits from the images, from which an answer
is selected. THE STUDENT is updated with images, targets and answers. Recording runs the first two, training from recorded answers
the first and the third, and training with a live teacher that is recorded all three. Each is the same program in all three cases,
built by one function here or in program.py, so the recorded answers are bit-identical to those of the live run. An ordinary run,
whose teacher is not recorded, is one program (`make_train_step`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.answers.decisions import Figures
from deit_jax.answers.files import AnswersFolder, Facts
from deit_jax.answers.fingerprint import teacher_fields
from deit_jax.answers.kinds import Answers
from deit_jax.answers.reading import RecordedAnswers
from deit_jax.answers.recording import Recording
from deit_jax.parallel.distributed import compiled_together, from_main_process
from deit_jax.parallel.sharding import put_batch, replicated, split_rows
from deit_jax.parallel.xla_options import xla_options
from deit_jax.training.losses import Metrics
from deit_jax.training.preparation import Built, Opened, step_batches
from deit_jax.training.program import Asking
from deit_jax.training.recorded_answers import LogitsSource, held, planned_recording
from deit_jax.training.state import TrainState
from deit_jax.training.step import Batch
from deit_jax.training.teacher import Teacher, teacher_digest

# (state, images, targets, answers) -> (state, metrics)
Update = Callable[[TrainState, jax.Array, jax.Array, Answers], tuple[TrainState, Metrics]]
# (first, end) -> this process's batches of the steps from first (counted from 0) to end - 1, with the crops' checksums
Read = Callable[[int, int], Iterator[dict[str, np.ndarray]]]


class NetworkSource:
    """A frozen network on a mesh as a source of logits."""

    def __init__(self, config: ConfigDict, teacher: Teacher, mesh: Mesh) -> None:
        self.identity = teacher_fields(config) | {"weights": teacher_digest(teacher)}
        self.description = teacher.description
        self.num_classes = teacher.model.num_classes
        self.frozen = jax.device_put(teacher.for_step(mesh), replicated(mesh))
        self._logits = compiled_together(
            jax.jit(
                lambda frozen, images: frozen.logits(images),
                in_shardings=(replicated(mesh), split_rows(mesh)),
                out_shardings=split_rows(mesh),
                compiler_options=xla_options(mesh, config.parallel.xla_options),
            )
        )

    def logits(self, images: jax.Array) -> jax.Array:
        """See `LogitsSource`."""
        return self._logits(self.frozen, images)


@dataclasses.dataclass(frozen=True)
class Sent:
    """A batch on the mesh; the checksums of this process's crops; and the recorded answers, if any."""

    batch: Batch
    checksums: np.ndarray
    answers: Answers | None = None


def _sent(mesh: Mesh, batch: dict[str, np.ndarray]) -> Sent:
    checksums = batch["checksum"]
    return Sent(put_batch(mesh, {name: rows for name, rows in batch.items() if name != "checksum"}), checksums)


class _Ahead:
    """Limits how far the host is ahead of the device to two steps, because images between two programs take memory."""

    def __init__(self) -> None:
        self._given: deque[Any] = deque()

    def wait(self) -> None:
        """Returns when the device has at most one step left."""
        if len(self._given) == 2:
            jax.block_until_ready(self._given.popleft())

    def note(self, result: Any) -> None:
        """Notes a result of the last step."""
        self._given.append(result)


class Replay:
    """The steps of a run that learns from recorded answers."""

    def __init__(self, asking: Asking, update: Update, recorded: RecordedAnswers) -> None:
        self._augment, self._update = compiled_together(asking.augment), compiled_together(update)
        self._mesh, self._recorded, self._ahead = asking.mesh, recorded, _Ahead()

    def begin(self, start: int) -> None:
        """Called before the first step, after `start` steps of earlier starts."""

    def put(self, batch: dict[str, np.ndarray]) -> Sent:
        """Sends the host's batch of a step to the mesh, without its answers."""
        return _sent(self._mesh, batch)

    def received(self, step: int, sent: Sent) -> Sent:
        """Adds the answers to a step, counted from 0. Raises as `RecordedAnswers.of_step`; all processes call it."""
        return dataclasses.replace(sent, answers=put_batch(self._mesh, self._recorded.of_step(step, sent.checksums)))

    def take(self, step: int, state: TrainState, sent: Sent) -> tuple[TrainState, Metrics]:
        """Runs a step, counted from 0."""
        assert sent.answers is not None
        self._ahead.wait()
        images, targets = self._augment(np.int32(step), sent.batch)
        state, metrics = self._update(state, images, targets, sent.answers)
        self._ahead.note(metrics["loss"])
        return state, metrics

    def finish(self) -> None:
        """Called after the last step."""


class Recorder:
    """Computes the answers of a source to the steps of a run, and writes them.

    read: the batches. class_names: of the training images. update: the student's program, for `take`; None: without a student.
    """

    def __init__(
        self,
        asking: Asking,
        source: LogitsSource,
        recording: Recording,
        read: Read,
        class_names: Sequence[str],
        update: Update | None = None,
    ) -> None:
        self._augment, self._select = compiled_together(asking.augment), compiled_together(asking.select)
        self._classes, self._class_names = compiled_together(asking.classes), tuple(class_names)
        self._update = None if update is None else compiled_together(update)
        self._mesh, self._source, self._recording, self._read = asking.mesh, source, recording, read
        self._ahead = _Ahead()

    def put(self, batch: dict[str, np.ndarray]) -> Sent:
        """Sends a host's batch of a step to the mesh."""
        return _sent(self._mesh, batch)

    def received(self, step: int, sent: Sent) -> Sent:
        """Returns the batch itself: the answers are asked for in the step."""
        return sent

    def ask(self, step: int, sent: Sent) -> tuple[jax.Array, jax.Array, Answers]:
        """Returns images, targets and answers of a step, counted from 0, and records the answers."""
        images, targets = self._augment(np.int32(step), sent.batch)
        answers = self._select(self._source.logits(images))
        self._recording.note(step, answers, sent.checksums, self._classes(targets))
        return images, targets, answers

    def take(self, step: int, state: TrainState, sent: Sent) -> tuple[TrainState, Metrics]:
        """Runs a step, counted from 0."""
        assert self._update is not None
        self._ahead.wait()
        images, targets, answers = self.ask(step, sent)
        state, metrics = self._update(state, images, targets, answers)
        self._ahead.note(metrics["loss"])
        return state, metrics

    def stretch(self, first: int, end: int) -> Generator[int, None, None]:
        """Records the steps from `first` (counted from 0) to `end` - 1; yields each once it is on the device."""
        for step, batch in enumerate(self._read(first, end), first):
            sent = self.put(batch)  # while the device is at the steps before
            self._ahead.wait()
            _, _, answers = self.ask(step, sent)
            self._ahead.note(answers)
            yield step

    def begin(self, start: int) -> None:
        """Computes those answers to the first `start` steps again that an earlier start did not write."""
        facts = self._recording.facts
        first, end = facts.steps_of(start // facts.shard_steps) if start < facts.total_steps else (start, start)
        done = start // facts.shard_steps if start < facts.total_steps else facts.shards
        for shard in missing_shards(self._recording.folder, facts, done):
            console.say("asking the teacher again for answers that an earlier start did not write")
            for _ in self.stretch(*facts.steps_of(shard)):
                pass
            self._recording.write_full_shard()
        if first < start < end:
            console.say(f"asking the teacher again for the answers to {start - first} steps, which are not written yet")
            for _ in self.stretch(first, start):
                pass

    def finish(self) -> Figures | None:
        """Called after the last step: writes the last shard, if it is complete, and the figures of all shards.

        Returns the figures, or None if there are none. All processes call it.
        """
        recording = self._recording
        recording.write_full_shard()
        return from_main_process(lambda: recording.folder.write_figures(recording.facts, self._class_names))


def missing_shards(folder: AnswersFolder, facts: Facts, end: int | None = None) -> list[int]:
    """Returns `AnswersFolder.missing`, the same in all processes."""
    return from_main_process(lambda: folder.missing(facts, console.warn, end))


def stretches_of(facts: Facts, shards: list[int]) -> list[tuple[int, int]]:
    """Returns the steps [first, end) of shards; adjacent shards are joined."""
    joined: list[tuple[int, int]] = []
    for shard in shards:
        first, end = facts.steps_of(shard)
        if joined and joined[-1][1] == first:
            first = joined.pop()[0]
        joined.append((first, end))
    return joined


# --- The recorder or replay of a training run ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RecordedTeacher:
    """The teacher of a run that records its answers, their folder and their facts."""

    logits_source: NetworkSource
    folder: AnswersFolder
    facts: Facts


def recording_of(opened: Opened, built: Built, teacher: Teacher | None) -> RecordedTeacher | None:
    """Returns what a run with config.teacher.record will write, else None. Raises AnswersError; writes nothing."""
    if teacher is None or built.program.asking is None:
        return None
    config, logits_source = opened.config, NetworkSource(opened.config, teacher, built.mesh)
    path = Path(config.teacher.record)
    return RecordedTeacher(
        logits_source, *planned_recording(path, config, opened.plan, opened.train_source, built.mesh, logits_source)
    )


@contextlib.contextmanager
def answering_of(opened: Opened, built: Built, recording: RecordedTeacher | None) -> Iterator[Replay | Recorder | None]:
    """Yields what runs the steps of a run that uses recorded answers or records its teacher's; None for other runs.

    The folder of a recorder is locked until the block ends.
    """
    config, source, program, order = opened.config, opened.train_source, built.program, opened.plan.order
    if program.asking is None:
        yield None
    elif recording is not None:

        def read(first: int, end: int) -> Iterator[dict[str, np.ndarray]]:
            return step_batches(config, source, opened.plan, program.host_rows, first, end, checksums=True)

        to = Recording(recording.folder, recording.facts, order, program.host_rows)
        with held(recording.folder, recording.facts):
            yield Recorder(program.asking, recording.logits_source, to, read, source.class_names, program.update_step)
    elif built.answers is not None:
        recorded = RecordedAnswers(*built.answers, order, program.host_rows, source, config.teacher.answers_timeout)
        yield Replay(program.asking, program.update_step, recorded)
    else:
        raise ValueError("a run with config.teacher.record needs a teacher")
