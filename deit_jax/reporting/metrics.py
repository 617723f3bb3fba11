"""Numbers of a run on disk: `metrics.jsonl` and TensorBoard events in the workdir."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboardX import SummaryWriter


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON; a reader sees the old file or the new one, never half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a last line cut off by a killed process is left out, an absent file is empty."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


class MetricsWriter:
    """Appends rows {"step": int, name: float, ...}; names are like "train/loss", TensorBoard's tags.

    Rows after `start_step` that an earlier, interrupted run left are dropped: the resumed run writes them again. With `silent`
    nothing is touched or written: of several processes one writes.
    """

    def __init__(self, workdir: Path, *, start_step: int, tensorboard: bool, silent: bool = False) -> None:
        self._file, self._events = None, None
        if silent:
            return
        path = workdir / "metrics.jsonl"
        kept = [row for row in read_rows(path) if row["step"] <= start_step]
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(partial, path)
        self._file = path.open("a")
        if tensorboard:
            self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row, on disk when this returns."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()
