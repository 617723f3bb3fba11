"""The log of a run: metrics.jsonl, and optionally TensorBoard and Weights & Biases."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from deit_jax.errors import UserError
from deit_jax.printable import all_printable, printable
from deit_jax.reporting.fields import flat
from deit_jax.storage.files import NONFINITE, disk_faults, strict_json
from deit_jax.storage.lease import LostLockError
from deit_jax.storage.store import BucketError
from deit_jax.storage.workdir import METRICS, TENSORBOARD, Workdir, WorkdirLike

Row = Mapping[str, Any]  # a row of metrics.jsonl: {"step": int, name: float, ...}; names are like "train/loss"


class LogError(UserError):
    """Metrics that cannot be written."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A group of images with captions."""

    name: str  # e.g. "images/training"
    images: Sequence[np.ndarray]  # each uint8[H, W, 3]
    captions: Sequence[str]
    class_names: Sequence[str] = ()  # used in the captions, in class order


class Destination(abc.ABC):
    """A backend of `RunLog`. An OSError means a disk error and ends the run with LogError; it handles other failures itself."""

    @abc.abstractmethod
    def begin(self, start_step: int, kept: Sequence[Row]) -> None:
        """Starts (or, after a rollback, restarts) after `start_step`. kept: the rows of earlier starts up to that step."""

    @abc.abstractmethod
    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a row. Steps do not decrease; a step may have several rows with different names."""

    @abc.abstractmethod
    def close(self, status: int) -> None:
        """Releases all resources. status: the exit status of the process, 0 on success. May be called twice."""

    def pictures(self, step: int, pictures: Pictures) -> None:
        """Writes pictures of a step."""
        return

    def sync(self) -> None:
        """Makes written rows survive a power failure, as far as the backend can."""
        return

    def finish(self, step: int, results: Mapping[str, Any]) -> None:
        """Ends the run. results: numbers by name, e.g. {"results/images_per_second": 123.0}."""
        return


class RunLog:
    """Logs a run in `workdir` to all configured destinations, which it closes on exit of its context.

    Writes nothing before `begin`, and nothing at all if `silent` (one of several processes writes). `config` is validated.

    Raises LogError if Weights & Biases is configured but not installed; the methods raise it on disk errors.
    """

    def __init__(self, config: ConfigDict, workdir: WorkdirLike, *, silent: bool = False) -> None:
        self._workdir = workdir = Workdir.at(workdir)
        self._destinations: list[Destination] = []
        self._begun = False
        self.shows_pictures = False  # whether `pictures` has an effect, since making them takes time
        if config.log.wandb and importlib.util.find_spec("wandb") is None:
            raise LogError("config.log.wandb needs the package wandb: pip install wandb, or set the field to False")
        if silent:
            return
        fields = all_printable(json.loads(config.to_json_best_effort()))
        self._destinations.append(MetricsFile(workdir))
        if config.log.tensorboard:
            from deit_jax.reporting.tensorboard import TensorBoard  # imports this module, as the next one does

            self._destinations.append(TensorBoard(workdir.folder(TENSORBOARD), fields))
        if config.log.wandb:
            from deit_jax.reporting.weights_and_biases import WeightsAndBiases

            self._destinations.append(WeightsAndBiases(config.log, workdir, fields))
        self.shows_pictures = config.log.images and (config.log.tensorboard or config.log.wandb)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        status = 0 if error is None else getattr(error, "exit_status", 1)
        for destination in self._destinations:
            with contextlib.suppress(OSError):  # reported by the write before
                destination.close(status)
        if error is None:
            self._upload()  # pictures that came after `finish`, in a file of this start's own

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Syncs the rows if the block raises, e.g. for a loss that is not finite. The workdir is locked.

        Not if the bucket refuses or does not answer, or if the lock is lost: then rows cannot be written.
        """
        try:
            yield
        except (BucketError, LostLockError):
            raise
        except Exception:
            with contextlib.suppress(UserError):
                self.sync()
            raise

    def begin(self, start_step: int) -> None:
        """Starts after `start_step`; drops later rows of an earlier start, since they will be rewritten."""
        if self._destinations:
            kept = [row for row in read_metrics(self._workdir) if row["step"] <= start_step]
            self._for_each(lambda destination: destination.begin(start_step, kept))
            self._begun = True

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a row {"step": step, name: value, ...} to the files; names are like "train/loss"."""
        self._for_each(lambda destination: destination.write(step, values))

    def pictures(self, step: int, pictures: Pictures) -> None:
        """Writes pictures of a step, if `begin` was called."""
        if self._begun and self.shows_pictures:
            pictures = dataclasses.replace(pictures, captions=[printable(caption) for caption in pictures.captions])
            self._for_each(lambda destination: destination.pictures(step, pictures))

    def sync(self) -> None:
        """Syncs all rows to the disk, or writes them to the bucket."""
        if self._begun:
            self._for_each(lambda destination: destination.sync())
        self._upload()

    def finish(self, results: Mapping[str, Any]) -> None:
        """Ends the run, and writes all to the bucket. The workdir is locked.

        results: the content of results.json; logged without the scores, which the last evaluation has logged.
        """
        logged = {name: value for name, value in results.items() if name not in ("scores", "step", "protocol")}
        values = numbers({f"results/{name.replace('.', '/')}": value for name, value in flat(logged)})
        self._for_each(lambda destination: destination.finish(results["step"], values))
        self._upload()

    def _upload(self) -> None:
        if self._begun:
            with disk_faults(self._unwritable):
                self._workdir.upload()

    def _for_each(self, call: Callable[[Destination], None]) -> None:
        with disk_faults(self._unwritable):
            for destination in self._destinations:
                call(destination)

    def _unwritable(self, reason: str) -> LogError:
        return LogError(
            f"{self._workdir}: the metrics cannot be written ({reason}); the checkpoints are intact, fix that and rerun "
            "the command"
        )


def read_metrics(workdir: WorkdirLike) -> list[dict[str, Any]]:
    """Returns the rows of a run up to the first damaged line, with NaN for null; [] if there is no file."""
    rows: list[dict[str, Any]] = []
    for line in (Workdir.at(workdir).read(METRICS, errors="replace") or "").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        row.pop(NONFINITE, None)
        rows.append({name: math.nan if value is None else value for name, value in row.items()})
    return rows


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers in a row, without its step."""
    return {
        name: float(value)
        for name, value in values.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


class MetricsFile(Destination):
    """Writes metrics.jsonl, one row per line, unbuffered. The methods raise OSError on disk errors."""

    def __init__(self, workdir: WorkdirLike) -> None:
        self._file = Workdir.at(workdir).growing(METRICS)

    def begin(self, start_step: int, kept: Sequence[Row]) -> None:
        self._file.begin("".join(strict_json(row) + "\n" for row in kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.append(strict_json({"step": step, **values}))

    def sync(self) -> None:
        self._file.sync()

    def close(self, status: int) -> None:
        self._file.close()
