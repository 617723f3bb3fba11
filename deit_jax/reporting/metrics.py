"""`metrics.jsonl`, the numbers of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from deit_jax.errors import UserError
from deit_jax.reporting.pictures import Pictures
from deit_jax.storage.files import NONFINITE, strict_json
from deit_jax.storage.workdir import METRICS, Workdir, WorkdirLike

Row = Mapping[str, Any]  # of metrics.jsonl: {"step": int, name: float, ...}


class LogError(UserError):
    """Numbers that cannot be written. The message is one line."""


def read_metrics(workdir: WorkdirLike) -> list[dict[str, Any]]:
    """The rows of a run, NaN for null; those from the first damaged line on are left out, no file is no rows."""
    rows: list[dict[str, Any]] = []
    for line in (Workdir.at(workdir).read(METRICS, errors="replace") or "").splitlines():
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

    def __init__(self, workdir: WorkdirLike) -> None:
        self._file = Workdir.at(workdir).growing(METRICS)

    def begin(self, start_step: int, kept: Sequence[Row]) -> None:
        """Keep the rows `kept` and drop those after `start_step`: the resumed run writes them again."""
        self._file.begin("".join(strict_json(row) + "\n" for row in kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row, in the file when this returns."""
        self._file.append(strict_json({"step": step, **values}))

    def pictures(self, step: int, pictures: Pictures) -> None:
        """Not kept here."""

    def sync(self) -> None:
        """Return when all rows are on the disk, where a power failure leaves them."""
        self._file.sync()

    def finish(self, step: int, results: Mapping[str, Any]) -> None:
        """Not kept here: results.json is written by the trainer."""

    def close(self, status: int) -> None:
        """Close the file, if it is open."""
        self._file.close()
