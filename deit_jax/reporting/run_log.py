"""Where the numbers of a run go: metrics.jsonl always, TensorBoard and Weights & Biases if the configuration says so."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from deit_jax.errors import UserError
from deit_jax.printable import all_printable, printable
from deit_jax.storage.files import NONFINITE, disk_faults, strict_json
from deit_jax.storage.workdir import METRICS, TENSORBOARD, Workdir, WorkdirLike

Row = Mapping[str, Any]  # of metrics.jsonl: {"step": int, name: float, ...}


class LogError(UserError):
    """Numbers that cannot be written. The message is one line."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Some images that belong together, and a text for each."""

    name: str  # under which they are logged, e.g. "images/training"
    images: Sequence[np.ndarray]  # each uint8[H, W, 3]
    captions: Sequence[str]
    class_names: Sequence[str] = ()  # that the captions mention, in the order of the classes


class Destination(Protocol):
    """One place that numbers go to. An OSError is the disk's, and ends the run with a LogError; other failures it deals with."""

    def begin(self, start_step: int, kept: Sequence[Row]) -> None:
        """Start, or after a rollback start again, after `start_step`.

        kept: the rows up to that step, which an earlier start has written.
        """

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A row. Steps do not decrease; one step may have several rows, of different names."""

    def pictures(self, step: int, pictures: Pictures) -> None:
        """Pictures as of a step."""

    def sync(self) -> None:
        """Return when what was written will survive a power failure, as far as this place can promise it."""

    def finish(self, step: int, results: Mapping[str, Any]) -> None:
        """The run is finished; results: numbers by name, e.g. {"results/images_per_second": 123.0}."""

    def close(self, status: int) -> None:
        """Let go of everything; status: the process's exit status, 0 if all went well. May be called twice."""


class RunLog:
    """The log of a run in `workdir`, to all its destinations. A context manager, which closes them.

    Nothing is touched before `begin`, which a run calls that has something to do. With `silent` nothing ever is: of several
    processes one writes. The configuration is validated.

    Raises LogError if Weights & Biases is asked for and not installed; its methods if the disk does not take a row.
    """

    def __init__(self, config: ConfigDict, workdir: WorkdirLike, *, silent: bool = False) -> None:
        self._workdir = workdir = Workdir.at(workdir)
        self._destinations: list[Destination] = []
        self._begun = False
        self.shows_pictures = False  # whether `pictures` has an effect: they cost something to make
        if config.log.wandb and importlib.util.find_spec("wandb") is None:
            raise LogError("config.log.wandb needs the package wandb: pip install wandb, or set the field to False")
        if silent:
            return
        fields = all_printable(json.loads(config.to_json_best_effort()))
        self._destinations.append(MetricsFile(workdir))
        if config.log.tensorboard:
            from deit_jax.reporting.tensorboard import TensorBoard  # which imports this module, as the next one does

            self._destinations.append(TensorBoard(workdir.folder(TENSORBOARD), fields))
        if config.log.wandb:
            from deit_jax.reporting.weights_and_biases import WeightsAndBiases

            self._destinations.append(WeightsAndBiases(config.log, workdir, fields))
        self.shows_pictures = config.log.images and (config.log.tensorboard or config.log.wandb)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = 0 if error is None else getattr(error, "exit_status", 1)
        for destination in self._destinations:
            with contextlib.suppress(OSError):  # told by what was written last
                destination.close(status)

    def begin(self, start_step: int) -> None:
        """Start after `start_step`; rows after it that an earlier start has left are dropped, for they are written again."""
        if not self._destinations:
            return
        with disk_faults(self._unwritable):
            kept = [row for row in read_metrics(self._workdir) if row["step"] <= start_step]
            for destination in self._destinations:
                destination.begin(start_step, kept)
        self._begun = True

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A row {"step": step, name: value, ...}, in the files when this returns; names are like "train/loss"."""
        with disk_faults(self._unwritable):
            for destination in self._destinations:
                destination.write(step, values)

    def pictures(self, step: int, pictures: Pictures) -> None:
        """Pictures as of a step; nothing if the run had nothing to do."""
        if self._begun and self.shows_pictures:
            captions = [printable(caption) for caption in pictures.captions]
            with disk_faults(self._unwritable):
                for destination in self._destinations:
                    destination.pictures(step, dataclasses.replace(pictures, captions=captions))

    def sync(self) -> None:
        """Return when all rows are on the disk, where a power failure leaves them."""
        with disk_faults(self._unwritable):
            for destination in self._destinations:
                destination.sync()

    def finish(self, results: Mapping[str, Any]) -> None:
        """The run is finished; `results` is what results.json holds."""
        found = numbers(_flat_results(results))
        with disk_faults(self._unwritable):
            for destination in self._destinations:
                destination.finish(results["step"], found)

    def _unwritable(self, reason: str) -> LogError:
        return LogError(
            f"{self._workdir}: the metrics cannot be written ({reason}); the checkpoints are intact, fix that and run "
            "the command again"
        )


def _flat_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """By name, "/"-joined under "results"; without the scores, which the last evaluation's row has."""

    def walk(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if isinstance(value, Mapping):
                yield from walk(value, f"{prefix}/{name}")
            else:
                yield f"{prefix}/{name}", value

    return dict(
        walk({name: value for name, value in results.items() if name not in ("scores", "step", "protocol")}, "results")
    )


def read_metrics(workdir: WorkdirLike) -> list[dict[str, Any]]:
    """The rows of a run, NaN for null; those from the first damaged line on are left out. Without a file there are none."""
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
    """Rows {"step": int, name: float, ...}; names are like "train/loss". A `Destination`.

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
