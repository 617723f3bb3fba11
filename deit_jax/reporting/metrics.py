"""`metrics.jsonl`, the numbers of a run, and files that are replaced whole."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from deit_jax.errors import UserError
from deit_jax.reporting.pictures import Pictures

Row = Mapping[str, Any]  # of metrics.jsonl: {"step": int, name: float, ...}


class LogError(UserError):
    """Numbers that cannot be written. The message is one line."""


NONFINITE = (
    "nonfinite_values"  # of a JSON object: how many numbers in it are null because JSON has no NaN and no infinity
)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as `strict_json`; a reader sees the old file or the new one, never half, also after a power failure."""
    replace_file(path, strict_json(content, indent=2) + "\n")


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


def replace_file(path: Path, text: str) -> None:
    """Write a file whole or not at all; it is on the disk when this returns."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, NaN for null; a last line that a killed process cut off is left out, no file is no rows."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            row.pop(NONFINITE, None)
            rows.append({name: math.nan if value is None else value for name, value in row.items()})
    return rows


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """What of a row is a number, without its step."""
    return {
        name: float(value)
        for name, value in values.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


class MetricsFile:
    """Rows {"step": int, name: float, ...}; names are like "train/loss". A `Destination` of `run_log`.

    OSError of any method is the disk's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None

    def begin(self, start_step: int, kept: Sequence[Row]) -> None:
        """Keep the rows `kept` and drop those after `start_step`: the resumed run writes them again."""
        self.close(0)
        replace_file(self._path, "".join(strict_json(row) + "\n" for row in kept))
        # Unbuffered: what a full disk has refused is not tried again when the file is closed.
        self._file = self._path.open("ab", buffering=0)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row, in the file when this returns."""
        assert self._file is not None
        row = (strict_json({"step": step, **values}) + "\n").encode()
        if self._file.write(row) != len(row):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def pictures(self, step: int, pictures: Pictures) -> None:
        """Not kept here."""

    def sync(self) -> None:
        """Return when all rows are on the disk, where a power failure leaves them."""
        assert self._file is not None
        os.fsync(self._file.fileno())

    def finish(self, step: int, results: Mapping[str, Any]) -> None:
        """Not kept here: results.json is written by the trainer."""

    def close(self, status: int) -> None:
        """Close the file, if it is open."""
        if self._file is not None:
            self._file.close()
            self._file = None
