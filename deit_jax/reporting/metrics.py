"""Numbers of a run on disk: `metrics.jsonl` and TensorBoard events in the workdir."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboardX import SummaryWriter

from deit_jax.errors import UserError, machine_fault


class LogError(UserError):
    """Numbers that cannot be written. The message is one line."""


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON; a reader sees the old file or the new one, never half of it, also after a power failure."""
    replace_file(path, json.dumps(content, indent=2) + "\n")


def replace_file(path: Path, text: str) -> None:
    """Write a file whole or not at all; it is on the disk when this returns."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
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
    nothing is touched or written: of several processes one writes. Raises LogError when the disk does not take it.
    """

    def __init__(self, workdir: Path, *, start_step: int, tensorboard: bool, silent: bool = False) -> None:
        self._file, self._events = None, None
        self._path = workdir / "metrics.jsonl"
        if silent:
            return
        with self._disk_faults_told():
            kept = [row for row in read_rows(self._path) if row["step"] <= start_step]
            replace_file(self._path, "".join(json.dumps(row) + "\n" for row in kept))
            # Unbuffered: what a full disk has refused is not tried again when the file is closed.
            self._file = self._path.open("ab", buffering=0)
            if tensorboard:
                # A queue that never fills: its thread dies with the disk, and would be waited for.
                folder = str(workdir / "tensorboard")
                self._events = SummaryWriter(folder, purge_step=start_step + 1, max_queue=100_000)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            with contextlib.suppress(OSError):  # told by write
                self._events.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row, in the file when this returns."""
        if self._file is None:
            return
        with self._disk_faults_told():
            row = (json.dumps({"step": step, **values}) + "\n").encode()
            if self._file.write(row) != len(row):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._events is not None:
                for name, value in values.items():
                    self._events.add_scalar(name, value, step)
                self._events.flush()

    def sync(self) -> None:
        """Return when all rows are on the disk, where a power failure leaves them."""
        if self._file is not None:
            with self._disk_faults_told():
                os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def _disk_faults_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = machine_fault(error) or error.strerror or str(error)
            raise LogError(
                f"{self._path.parent}: the metrics cannot be written ({reason}); the checkpoints are intact, mend that and run "
                "the command again"
            ) from error
