"""Writes files atomically, appends to files, and reports disk errors in one line."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from deit_jax.errors import UserError, machine_fault

# A file system that cannot sync a folder answers with one of these.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES)
NONFINITE = "nonfinite_values"  # in a JSON object: how many of its numbers are null because JSON has no NaN or infinity


class UnreadableError(UserError):
    """A file or folder that exists but cannot be read or parsed."""


def strict_json(content: Any, indent: int | None = None) -> str:
    """Returns standard JSON, with null for non-finite numbers. An object with such numbers has their count as NONFINITE."""
    replaced = 0

    def finite(value: Any) -> Any:
        nonlocal replaced
        if isinstance(value, Mapping):
            return {name: finite(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [finite(inner) for inner in value]
        if isinstance(value, float) and not math.isfinite(value):
            replaced += 1
            return None
        return value

    content = finite(content)
    if replaced and isinstance(content, dict):
        content[NONFINITE] = replaced
    return json.dumps(content, indent=indent, allow_nan=False)


def as_file(content: Any) -> str:
    """Returns the text of a JSON file: `strict_json`, indented."""
    return strict_json(content, indent=2) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as `strict_json`, atomically."""
    replace_file(path, as_file(content))


def replace_file(path: Path, text: str) -> None:
    """Writes a file atomically, even across a power failure; it and its folder are synced when this returns. Raises OSError."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Does what `replace_file` does, with bytes."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Syncs the names in a folder, if its file system can. Raises OSError."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def write_file(path: Path, text: str, error: Callable[[str], UserError], then: str = "fix that") -> None:
    """Calls `replace_file` after creating the folder. Raises `error("PATH cannot be written (REASON); THEN")`."""
    with disk_faults(lambda reason: error(f"{path} cannot be written ({reason}); {then}")):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text)


def require_writable(path: Path, error: Callable[[str], UserError]) -> None:
    """Raises `error("PATH cannot be written (REASON)")` if `write_file` would fail now. Writes nothing."""
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    reason = 0
    if os.path.isdir(path):  # Path.is_dir raises for a folder that may not be entered
        reason = errno.EISDIR
    elif not os.path.isdir(folder):
        reason = errno.ENOTDIR
    elif not os.access(folder, os.W_OK | os.X_OK):
        reason = errno.EACCES
    if reason:
        raise error(f"{path} cannot be written ({os.strerror(reason)})")


@contextlib.contextmanager
def disk_faults(error: Callable[[str], UserError]) -> Iterator[None]:
    """Converts an OSError of the block into `error(reason)`, with the system's reason, e.g. "No space left on device"."""
    try:
        yield
    except OSError as fault:
        raise error(machine_fault(fault) or fault.strerror or str(fault)) from fault


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Converts an OSError of the block into UnreadableError, with the path and the system's reason."""
    with disk_faults(lambda reason: UnreadableError(f"{path} cannot be read ({reason}); fix that and try again")):
        yield


def status(path: Path) -> os.stat_result | None:
    """Returns the status of a file or folder; None if there is none.

    Raises UnreadableError for other errors, for some of which `Path.exists` returns False.
    """
    with reading(path):
        try:
            return path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None


class GrowingFile:
    """A file to which lines are appended. The methods raise OSError on disk errors."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None

    def begin(self, text: str) -> None:
        """Replaces the content by `text`, atomically, and opens the file; may be called again."""
        self.close()
        replace_file(self._path, text)
        # Unbuffered: otherwise closing the file would retry what a full disk has refused.
        self._file = self._path.open("ab", buffering=0)

    def append(self, line: str) -> None:
        """Appends a line, unbuffered."""
        assert self._file is not None
        content = (line + "\n").encode()
        if self._file.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        """Syncs all lines to the disk."""
        assert self._file is not None
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file, if it is open."""
        if self._file is not None:
            self._file.close()
            self._file = None
