"""Files that are replaced whole, files that grow by lines, and a disk's refusals in one line."""

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

NONFINITE = (
    "nonfinite_values"  # of a JSON object: how many numbers in it are null because JSON has no NaN and no infinity
)


def strict_json(content: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: null for NaN and infinite numbers. An object that has any says how many, as NONFINITE."""
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
    """The text of a JSON file for people and programs: `strict_json`, indented."""
    return strict_json(content, indent=2) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write `content` as `strict_json`; a reader sees the old file or the new one, never half, also after a power failure."""
    replace_file(path, as_file(content))


def replace_file(path: Path, text: str) -> None:
    """Write a file whole or not at all; it is on the disk when this returns. Raises OSError."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_file(path: Path, text: str, error: Callable[[str], UserError], then: str = "fix that") -> None:
    """`replace_file`, in a folder that is made if it is not there.

    Raises `error` of the line "PATH cannot be written (REASON); THEN".
    """
    with disk_faults(lambda reason: error(f"{path} cannot be written ({reason}); {then}")):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text)


@contextlib.contextmanager
def disk_faults(error: Callable[[str], UserError]) -> Iterator[None]:
    """Raise `error` of the reason for an OSError of the block. The reason is in the system's words: "No space left on device"."""
    try:
        yield
    except OSError as fault:
        raise error(machine_fault(fault) or fault.strerror or str(fault)) from fault


class GrowingFile:
    """A file that lines are appended to. OSError of any method is the disk's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None

    def begin(self, text: str) -> None:
        """Start with `text`, which replaces what is there whole or not at all; once more if it is open."""
        self.close()
        replace_file(self._path, text)
        # Unbuffered: what a full disk has refused is not tried again when the file is closed.
        self._file = self._path.open("ab", buffering=0)

    def append(self, line: str) -> None:
        """A line, in the file when this returns."""
        assert self._file is not None
        content = (line + "\n").encode()
        if self._file.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        """Return when all lines are on the disk, where a power failure leaves them."""
        assert self._file is not None
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._file is not None:
            self._file.close()
            self._file = None
