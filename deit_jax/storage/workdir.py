"""The workdir of a run: the names of its files, and all access to them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deit_jax.errors import UserError
from deit_jax.storage.bucket import bucket_address
from deit_jax.storage.checkpoints import CheckpointPlaces
from deit_jax.storage.files import GrowingFile, UnreadableError, as_file, disk_faults, status, write_file

# Files of a run.
CONFIG = "config.json"  # written at its start
ENVIRONMENT = "environment.json"  # written at its end: machine and versions
METRICS = "metrics.jsonl"
RESULTS = "results.json"  # written at its end; marks the run as finished
REPORT = "report.html"
TEACHER_SCORES = "teacher_scores.json"
ROLLBACKS = "rollbacks.json"
WALL_TIME = "wall_time.json"
WANDB_NOTE = "wandb.json"
LOCK = "lock"
# Files of modes.
EVALUATION = "evaluation.json"
THROUGHPUT = "throughput.json"
# Folders.
TENSORBOARD = "tensorboard"
ANALYSIS = "analysis"


class WorkdirError(UserError):
    """A workdir that cannot be used now."""


class InUseError(Exception):
    """Another process holds a lock. The message names the process."""


@contextlib.contextmanager
def locked(path: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of a file, which names the holder, until the block or the process ends.

    If the file system does not support locks, calls `warn` with a line and continues. Raises InUseError if another process holds
    the lock, and OSError if the file cannot be written.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(handle, path, warn)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        os.fsync(handle)  # for the run's other processes, which may be on other machines
        yield
    finally:
        os.close(handle)  # releases the lock; so does the system when the process ends


def _lock(handle: int, path: Path, warn: Callable[[str], None]) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise InUseError(os.pread(handle, 200, 0).decode(errors="replace").strip() or "unknown") from None
        warn(f"{path} cannot be locked ({error.strerror}): make sure that no other run uses this folder")


class Workdir:
    """The folder of one run, or with `BucketWorkdir` its place in a bucket. All its files are read and written here, and the
    checkpoints through `checkpoints`.

    Writes are atomic: a reader sees the old file or the new one, even after a power failure. Only one process of a run writes,
    and holds the lock. File names are the constants of this module. str() is the path as the user typed it.
    """

    in_bucket = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = CheckpointPlaces(path.absolute() / "checkpoints")

    @classmethod
    def at(cls, place: WorkdirLike) -> Workdir:
        """Returns the workdir of a path or of an address (`bucket_address`), without accessing it. Raises BucketError."""
        if isinstance(place, Workdir):
            return place
        if (address := bucket_address(place)) is not None:
            from deit_jax.storage.bucket_workdir import BucketWorkdir  # a subclass

            return BucketWorkdir(address)
        return cls(Path(place))

    def __str__(self) -> str:
        return str(self.path)

    @property
    def teacher(self) -> Workdir:
        """The workdir of the teacher that the run trains first (config.teacher.recipe)."""
        return Workdir(self.path / "teacher")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.resolve().name

    def address(self, name: str) -> str:
        """Returns the path of a file, for messages."""
        return str(self.path / name)

    def folder(self, name: str) -> Path:
        """Returns a folder, which may not exist yet, for libraries that write their own files; see `upload`."""
        return self.path / name

    def is_there(self) -> bool:
        """Returns whether the path exists. Raises UnreadableError."""
        return status(self.path) is not None

    def has(self, name: str) -> bool:
        """Returns whether the file exists. Raises UnreadableError."""
        return status(self.path / name) is not None

    def read(self, name: str, errors: str = "strict") -> str | None:
        """Returns the content of a file, None if it does not exist. Raises UnreadableError.

        errors: how to handle bytes that are not UTF-8, as in `bytes.decode`.
        """
        try:
            return (self.path / name).read_text(encoding="utf-8", errors=errors)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise UnreadableError(f"{self.address(name)} cannot be read ({error})") from error

    def read_json(self, name: str) -> Any:
        """Returns the content of a JSON file, None if it does not exist. Raises UnreadableError, also for invalid JSON."""
        text = self.read(name)
        try:
            return None if text is None else json.loads(text)
        except json.JSONDecodeError as error:
            raise UnreadableError(f"{self.address(name)} is damaged ({error})") from error

    def write(
        self, name: str, text: str, *, error: Callable[[str], UserError] = WorkdirError, then: str = "fix that"
    ) -> None:
        """Writes a file as `write_file` does."""
        write_file(self.path / name, text, error, then)

    def write_json(
        self, name: str, content: Any, *, error: Callable[[str], UserError] = WorkdirError, then: str = "fix that"
    ) -> None:
        """Writes `content` as `strict_json`, as `write_file` does."""
        self.write(name, as_file(content), error=error, then=then)

    def growing(self, name: str) -> GrowingFile:
        """Returns a file to which lines are appended."""
        return GrowingFile(self.path / name)

    def upload(self) -> None:
        """Writes to a bucket what has changed in growing files and in folders; does nothing for a folder on a disk.

        Raises BucketError, and LostLockError if another run has taken over the workdir.
        """

    @contextlib.contextmanager
    def locked(self, warn: Callable[[str], None]) -> Iterator[None]:
        """Holds the lock of the workdir, which is created if needed, until the block or the process ends.

        LOCK names the holder. If the file system does not support locks, calls `warn` with a line and continues.

        Raises WorkdirError if another run holds the lock, or if the folder cannot be written.
        """
        with contextlib.ExitStack() as stack:
            with disk_faults(self._unwritable):
                self.path.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(locked(self.path / LOCK, warn))
                except InUseError as holder:
                    raise WorkdirError(
                        f"--workdir={self} is in use by another run ({holder}); wait for it, stop it or use another"
                    ) from None
            yield

    def holder(self) -> str:
        """Returns what identifies the holder of the lock, the same for all processes; "" without a lock.

        Raises UnreadableError.
        """
        return self.read(LOCK) or ""

    def _unwritable(self, reason: str) -> WorkdirError:
        return WorkdirError(f"--workdir={self} cannot be written ({reason}); fix that or use another")


WorkdirLike = str | Path | Workdir  # accepted by functions that users call


def refuse_as_output(folder: Path, error: type[UserError]) -> None:
    """Raises `error` if a folder, in which an export would write its own config.json, is the workdir of a run."""
    workdir = Workdir.at(folder)
    if workdir.checkpoints.exist() or workdir.has(METRICS):
        raise error(f"{folder} is the --workdir of a training run: give another folder")
