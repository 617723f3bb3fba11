"""The folder of recorded answers: answers.json, which describes them, and shards, one file per range of steps.

A shard holds the answers to all rows of the global batch of each of its steps, the checksum of each row's crop, and the counts of
the teacher's decisions, so that the bytes do not depend on the number of processes that write or read them. A file is complete or
absent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deit_jax.answers.decisions import Decisions, Figures
from deit_jax.answers.kinds import AnswerKind
from deit_jax.errors import UserError
from deit_jax.storage.files import as_file, disk_faults, replace_bytes
from deit_jax.storage.workdir import InUseError, locked

FORMAT = 1
FACTS = "answers.json"
_FIGURES = "decisions"  # the key of a complete recording's figures in answers.json
CROPS = "crop"  # the name of the checksums among the arrays of a shard
_LOCK = "recorder.lock"
_PROGRESS = "recording"  # is there while a recorder works: the step that it is at
_SHARD_BYTES = 4 << 20  # about
_SHARD_STEPS = 256  # at most
_LONGEST_HEADER = 4096

Arrays = Mapping[str, np.ndarray]  # [steps, B, ...] each


class AnswersError(UserError):
    """Recorded answers that cannot be read, written or used. The message is one line."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """The content of answers.json."""

    kind: AnswerKind
    batch_size: int
    total_steps: int  # those that are or will be recorded
    shard_steps: int  # per shard; the last one may have fewer
    teacher: str  # for users
    fingerprint: dict[str, Any]  # nested: all that the answers depend on; see fingerprint.py
    versions: dict[str, str]  # of the libraries that read, crop and compute

    @property
    def digest(self) -> str:
        """A digest of the kind and the fingerprint, 32 hexadecimal digits."""
        content = json.dumps([self.kind.record(), self.fingerprint], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    @property
    def shards(self) -> int:
        """The number of shards of a complete recording."""
        return math.ceil(self.total_steps / self.shard_steps)

    def steps_of(self, shard: int) -> tuple[int, int]:
        """Returns the steps [first, end) of a shard."""
        first = shard * self.shard_steps
        return first, min(first + self.shard_steps, self.total_steps)

    def arrays(self, shard: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Returns the type and shape of the arrays of a shard by name, in the order of the file."""
        first, end = self.steps_of(shard)
        rows = (end - first, self.batch_size)
        named = {name: (kind, (*rows, *shape)) for name, (kind, shape) in self.kind.arrays.items()}
        return {**named, CROPS: ("<u4", rows)}


def described(facts: Facts) -> str:
    """Returns a description of the answers for users."""
    return f"{facts.kind}, {facts.kind.row_bytes + 4} bytes per image, {facts.total_steps:,} steps"


def shard_steps(kind: AnswerKind, batch_size: int) -> int:
    """Returns the number of steps per shard, whose file then has a few megabytes."""
    return min(max(1, _SHARD_BYTES // (batch_size * (kind.row_bytes + 4))), _SHARD_STEPS)


class AnswersFolder:
    """The folder of one recording. Raises AnswersError for files that cannot be read or written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def facts(self) -> Facts | None:
        """Returns the content of answers.json, if any. Raises AnswersError if it is damaged or of a later version."""
        path = self.path / FACTS
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] > FORMAT:
                raise AnswersError(
                    f"{path} was written by a later version of deit_jax (format {content['format']}): use that one"
                )
            kind = AnswerKind(**content["kind"])
            fields = {field.name: content[field.name] for field in dataclasses.fields(Facts)}
            return Facts(**fields | {"kind": kind})
        except (FileNotFoundError, NotADirectoryError):
            return None
        except AnswersError:
            raise
        except OSError as error:
            raise AnswersError(f"{path} cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise AnswersError(
                f"{path} is damaged ({type(error).__name__}): restore it, or record the answers again"
            ) from error

    def write_facts(self, facts: Facts, figures: Figures | None = None) -> None:
        """Writes answers.json, and creates the folder if needed."""
        content = {"format": FORMAT, **dataclasses.asdict(facts), "digest": facts.digest}
        if figures is not None:
            content[_FIGURES] = figures
        with self._writing(FACTS):
            self.path.mkdir(parents=True, exist_ok=True)
            replace_bytes(self.path / FACTS, as_file(content).encode())

    def figures(self) -> Figures | None:
        """Returns the figures of `write_figures`; None while they are not written, or if an earlier version recorded."""
        try:
            found = json.loads((self.path / FACTS).read_text(encoding="utf-8")).get(_FIGURES)
        except (OSError, ValueError, AttributeError):
            return None
        return found if isinstance(found, dict) else None

    def write_figures(self, facts: Facts, class_names: Sequence[str]) -> Figures | None:
        """Adds the figures of the teacher's decisions to answers.json and returns them: see `Decisions.figures`, and "steps".

        Counts all shards that are there; "steps" is the number of their steps. None if an earlier version wrote all shards, which
        then have no counts.
        """
        counts, steps = Decisions.none(facts.kind.num_classes), 0
        for shard in range(facts.shards):
            found = self._decisions(facts, shard)
            if found is not None:
                first, end = facts.steps_of(shard)
                counts, steps = counts + found, steps + end - first
        figures = counts.figures(class_names)
        if figures is not None:
            figures["steps"] = steps
        if figures != self.figures():
            self.write_facts(facts, figures)
        return figures

    def _decisions(self, facts: Facts, shard: int) -> Decisions | None:
        """Returns the counts at the end of a shard, whose other bytes are not read; None if it is not there or has none."""
        arrays = sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in facts.arrays(shard).values())
        size = 4 * len(Decisions.none(facts.kind.num_classes).array())
        with contextlib.suppress(OSError), self._shard(shard).open("rb") as file:
            line = file.read(_LONGEST_HEADER).partition(b"\n")[0]
            if file.seek(0, 2) == len(line) + 1 + arrays + size:
                file.seek(-size, 2)
                return Decisions.from_array(np.frombuffer(file.read(), "<u4"))
        return None

    def refuse_other_files(self) -> None:
        """Raises AnswersError for a folder that holds files other than answers."""
        if self.path.is_file():
            raise AnswersError(f"{self} is a file: give a folder for the answers")
        if self.path.is_dir() and any(path.name != _LOCK for path in self.path.iterdir()) and self.facts() is None:
            raise AnswersError(
                f"{self} holds other files and no {FACTS}: give a new or an empty folder for the answers"
            )

    @contextlib.contextmanager
    def locked(self, warn: Any) -> Iterator[None]:
        """Holds the lock of the folder until the block or the process ends."""
        with contextlib.ExitStack() as held:
            with self._writing(_LOCK):
                self.path.mkdir(parents=True, exist_ok=True)
                try:
                    held.enter_context(locked(self.path / _LOCK, warn))
                except InUseError as holder:
                    raise AnswersError(
                        f"another recorder writes to {self} ({holder}): wait for it, or stop it"
                    ) from None
            yield

    def has(self, shard: int) -> bool:
        """Returns whether the file of the shard exists."""
        return self._shard(shard).exists()

    def write(self, facts: Facts, shard: int, arrays: Arrays, decisions: Decisions | None = None) -> None:
        """Writes a shard atomically; it is synced when this returns. Its bytes depend only on its content."""
        declared = facts.arrays(shard)
        parts = [np.ascontiguousarray(arrays[name], kind).tobytes() for name, (kind, _) in declared.items()]
        if decisions is not None:  # last, where earlier versions do not look
            parts.append(decisions.array().astype("<u4").tobytes())
        payload = b"".join(parts)
        header = {"format": FORMAT, "shard": shard, "steps": facts.steps_of(shard), "answers": facts.digest}
        line = json.dumps({**header, "blake2b": _digest(header, payload)}).encode() + b"\n"
        with self._writing(self._shard(shard).name):
            replace_bytes(self._shard(shard), line + payload)

    def read(self, facts: Facts, shard: int) -> dict[str, np.ndarray]:
        """Returns the arrays of a shard. Raises AnswersError if it is missing, is damaged, or belongs to other answers."""
        path = self._shard(shard)
        again = "remove it and run the recorder again"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise AnswersError(f"{path} cannot be read ({error.strerror}): {again}") from error
        line = content[:_LONGEST_HEADER].partition(b"\n")[0]
        payload = memoryview(content)[len(line) + 1 :]
        try:
            header = json.loads(line)
            written = header.pop("blake2b")
            steps, digest = tuple(header["steps"]), header["answers"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AnswersError(f"{path} is damaged ({type(error).__name__}): {again}") from error
        if written != _digest(header, payload):
            raise AnswersError(f"{path} is damaged (its checksum differs): {again}")
        if digest != facts.digest or header["shard"] != shard:
            raise AnswersError(f"{path} does not belong to {self.path / FACTS}: {again}")
        if steps != facts.steps_of(shard):
            raise AnswersError(
                f"{path} has the steps {steps[0]:,} to {steps[1] - 1:,}, and not those to {facts.steps_of(shard)[1] - 1:,} that "
                f"{FACTS} announces: run the recorder again"
            )
        arrays, offset = {}, 0
        for name, (kind, shape) in facts.arrays(shard).items():
            count = math.prod(shape)
            arrays[name] = np.frombuffer(payload, kind, count, offset).reshape(shape)
            offset += arrays[name].nbytes
        return arrays

    def missing(self, facts: Facts, warn: Any, end: int | None = None) -> list[int]:
        """Returns the missing and damaged shards before `end` (None: all); calls `warn` with a line for each damaged one."""
        found = []
        for shard in range(facts.shards if end is None else end):
            if not self.has(shard):
                found.append(shard)
                continue
            try:
                self.read(facts, shard)
            except AnswersError as error:
                warn(f"{error.args[0].rpartition(': ')[0]}; it is recorded again")
                found.append(shard)
        return found

    def note_progress(self, step: int) -> None:
        """Writes the step for trainings that wait for the next shard. Ignores disk errors."""
        with contextlib.suppress(OSError):
            (self.path / _PROGRESS).write_text(f"{step}\n", encoding="utf-8")

    def forget_progress(self) -> None:
        """Removes the file of `note_progress`."""
        with contextlib.suppress(OSError):
            (self.path / _PROGRESS).unlink(missing_ok=True)

    def sign_of_life(self) -> object:
        """Returns a value that changes whenever a recorder makes progress."""
        with contextlib.suppress(OSError):
            text = (self.path / _PROGRESS).read_text(encoding="utf-8") if (self.path / _PROGRESS).exists() else ""
            return text, sum(1 for _ in self.path.iterdir())
        return None

    def _shard(self, shard: int) -> Path:
        return self.path / f"shard-{shard:06d}.bin"

    def _writing(self, name: str) -> contextlib.AbstractContextManager[None]:
        return disk_faults(
            lambda reason: AnswersError(
                f"{self.path / name} cannot be written ({reason}); fix that and run the command again"
            )
        )


def _digest(header: Mapping[str, Any], payload: bytes | memoryview) -> str:
    found = hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16)
    found.update(payload)
    return found.hexdigest()
