"""The files of a run: their names, and the one way to them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deit_jax.errors import UserError
from deit_jax.storage.checkpoints import CheckpointPlaces
from deit_jax.storage.files import GrowingFile, as_file, disk_faults, write_file
from deit_jax.storage.lock import InUseError, locked

# What a run leaves in its workdir.
CONFIG = "config.json"  # from its start
ENVIRONMENT = "environment.json"  # from its end: machine and versions
METRICS = "metrics.jsonl"
RESULTS = "results.json"  # from its end: the run is finished
REPORT = "report.html"
TEACHER_SCORES = "teacher_scores.json"
ROLLBACKS = "rollbacks.json"
WANDB_NOTE = "wandb.json"
LOCK = "lock"
# What modes leave there.
EVALUATION = "evaluation.json"
THROUGHPUT = "throughput.json"
# Folders that other libraries write into, or several files of a mode.
TENSORBOARD = "tensorboard"
ANALYSIS = "analysis"


class WorkdirError(UserError):
    """A workdir that cannot be used now. The message is one line."""


class UnreadableError(UserError):
    """A file of a workdir that is there and cannot be read, or is not what its name says. The message is one line."""


class Workdir:
    """The folder of one run. Every file in it is read and written here, `checkpoints` by `CheckpointPlaces`.

    A reader of a file sees the old one or the new one, never half of one, also after a power failure.

    One process of a run writes, and it holds the lock while it does. The methods take names from the top of this module. str()
    is what the user calls the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path  # on this machine
        self.checkpoints = CheckpointPlaces(path.absolute() / "checkpoints")

    @classmethod
    def at(cls, place: WorkdirLike) -> Workdir:
        """The workdir that a user's --workdir means; nothing is touched."""
        return place if isinstance(place, Workdir) else cls(Path(place))

    def __str__(self) -> str:
        return str(self.path)

    @property
    def teacher(self) -> Workdir:
        """Of the teacher that the run trains first (config.teacher.recipe)."""
        return Workdir(self.path / "teacher")

    def address(self, name: str) -> str:
        """Of a file, for messages."""
        return str(self.path / name)

    def folder(self, name: str) -> Path:
        """A folder on this machine, which need not be there yet, for libraries that write their files themselves."""
        return self.path / name

    def is_there(self) -> bool:
        """Whether there is anything of that name."""
        return self.path.exists()

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.path / name).exists()

    def read(self, name: str, errors: str = "strict") -> str | None:
        """A file's content, None if it is not there. Raises UnreadableError.

        errors: what becomes of bytes that are not UTF-8, as of `bytes.decode`.
        """
        try:
            return (self.path / name).read_text(encoding="utf-8", errors=errors)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise UnreadableError(f"{self.address(name)} cannot be read ({error})") from error

    def read_json(self, name: str) -> Any:
        """A JSON file's content, None if it is not there. Raises UnreadableError, also for what is not JSON."""
        text = self.read(name)
        try:
            return None if text is None else json.loads(text)
        except json.JSONDecodeError as error:
            raise UnreadableError(f"{self.address(name)} is damaged ({error})") from error

    def write(
        self, name: str, text: str, *, error: Callable[[str], UserError] = WorkdirError, then: str = "fix that"
    ) -> None:
        """Write a file whole or not at all; it is on the disk when this returns. The folder is made if it is not there.

        Raises `error` of the line "FILE cannot be written (REASON); THEN".
        """
        write_file(self.path / name, text, error, then)

    def write_json(
        self, name: str, content: Any, *, error: Callable[[str], UserError] = WorkdirError, then: str = "fix that"
    ) -> None:
        """The same of `content` as `strict_json`."""
        self.write(name, as_file(content), error=error, then=then)

    def growing(self, name: str) -> GrowingFile:
        """A file that lines are appended to."""
        return GrowingFile(self.path / name)

    @contextlib.contextmanager
    def locked(self, warn: Callable[[str], None]) -> Iterator[None]:
        """Keep other runs out until the block ends or the process does; a folder that is not there is made.

        LOCK says who holds it. Where locks do not work, `warn` is called with a line and the lock is not held.

        Raises WorkdirError if another run holds it, or the folder cannot be written.
        """
        with contextlib.ExitStack() as held:
            with disk_faults(self._unwritable):
                self.path.mkdir(parents=True, exist_ok=True)
                try:
                    held.enter_context(locked(self.path / LOCK, warn))
                except InUseError as holder:
                    raise WorkdirError(
                        f"--workdir={self} is in use by another run ({holder}); wait for it, stop it or use another"
                    ) from None
            yield

    def _unwritable(self, reason: str) -> WorkdirError:
        return WorkdirError(f"--workdir={self} cannot be written ({reason}); fix that or use another")


WorkdirLike = str | Path | Workdir  # what functions for users take
