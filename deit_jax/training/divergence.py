"""Detects losses and gradients that are not finite, without making the device wait, and handles them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax

from deit_jax import console
from deit_jax.errors import UserError
from deit_jax.storage.files import UnreadableError
from deit_jax.storage.workdir import ROLLBACKS, Workdir, WorkdirLike

# Metrics of a step that only this module reads.
PRIVATE_METRICS = ("worst_gradient", "nonfinite_gradients")
READ_EVERY = 100  # steps: the longest delay before a bad step is detected
_MAX_SKIPPED_IN_A_ROW = 50
_MAX_ROLLBACKS = 20
_MAX_WARNINGS = 10


class DivergenceError(UserError):
    """A run that cannot continue because its loss or gradient is not finite."""

    exit_status = 3


class Rollback(Exception):
    """Asks the trainer to return to the last checkpoint and use other data from there."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step  # the first bad one


class Watch:
    """Checks the loss and gradient norm of every step, in groups, some steps late.

    For a bad step, `on_nonfinite` "stop" raises DivergenceError and "rollback" raises Rollback. "skip" (the step itself has kept
    the old weights) writes a row of metrics and continues, except after 50 bad steps in a row.
    """

    def __init__(
        self, on_nonfinite: str, parameter_names: Sequence[str], write_row: Callable[[int, dict[str, float]], None]
    ) -> None:
        self._on_nonfinite = on_nonfinite
        self._names = parameter_names
        self._write_row = write_row
        self._unread: deque[tuple[int, dict[str, jax.Array]]] = deque()
        self._skipped_in_a_row = 0
        self._warnings = 0

    def note(self, step: int, metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Remembers a step; returns the metrics to log."""
        names = ("loss", "grad_norm", *PRIVATE_METRICS)
        self._unread.append((step, {name: metrics[name] for name in names}))
        return {name: value for name, value in metrics.items() if name not in PRIVATE_METRICS}

    def read(self, through: int) -> None:
        """Judges the noted steps up to `through`, which it waits for. Raises DivergenceError or Rollback."""
        due = []
        while self._unread and self._unread[0][0] <= through:
            due.append(self._unread.popleft())
        steps = [step for step, _ in due]
        for step, values in zip(steps, jax.device_get([metrics for _, metrics in due]), strict=True):
            if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
                self._skipped_in_a_row = 0
            else:
                self._handle(step, values)

    def _handle(self, step: int, values: dict[str, Any]) -> None:
        message = self._describe(step, values)
        if self._on_nonfinite == "stop":
            raise DivergenceError(
                f"{message}; nothing of it is saved. Fix the cause, or continue with --config.on_nonfinite=skip (skip such "
                "steps) or rollback (return to the checkpoint and use other data)"
            )
        if self._on_nonfinite == "rollback":
            raise Rollback(step, message)
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= _MAX_SKIPPED_IN_A_ROW:
            raise DivergenceError(f"{message}; {self._skipped_in_a_row} steps in a row were skipped: giving up")
        self._warnings += 1
        if self._warnings <= _MAX_WARNINGS:
            console.warn(f"{message}; skipped" + ("; more are only counted" * (self._warnings == _MAX_WARNINGS)))
        self._write_row(step, {f"nonfinite/{name}": float(values[name]) for name in ("loss", "grad_norm")})

    def _describe(self, step: int, values: dict[str, Any]) -> str:
        bad, worst = int(values["nonfinite_gradients"]), self._names[int(values["worst_gradient"])]
        gradients = f"the gradients of {bad} of {len(self._names)} parameters are not finite, first {worst}"
        if not bad:
            gradients = f"the largest gradient is that of {worst}"
        return f"step {step}: the loss is {values['loss']:g} and the gradient norm {values['grad_norm']:g}; {gradients}"


@dataclasses.dataclass(frozen=True)
class _Detour:
    after: int  # step of the checkpoint that the run returned to
    bad: int  # step that was not finite
    batches: int  # number of batches skipped from there

    @classmethod
    def read(cls, fields: Any) -> _Detour:
        """Returns the detour whose `dataclasses.asdict` was stored as JSON. Raises TypeError for other content."""
        detour = cls(**fields)
        if not all(isinstance(value, int) for value in dataclasses.astuple(detour)):
            raise TypeError(f"{fields} are not whole numbers")
        return detour


_REQUIRED = "the run cannot continue without it; restore it, or start from scratch in another --workdir"


class Detours:
    """The rollbacks of a run, recorded in WORKDIR/rollbacks.json so that a resumed run uses the same data.

    at_least: how many the newest checkpoint has noted.

    Raises UserError if that file is damaged or has fewer.
    """

    def __init__(self, workdir: WorkdirLike, at_least: int = 0) -> None:
        self._workdir = Workdir.at(workdir)
        where = self._workdir.address(ROLLBACKS)
        try:
            recorded = self._workdir.read_json(ROLLBACKS) if self._workdir.has(ROLLBACKS) else []
            self._detours = [_Detour.read(fields) for fields in recorded]
        except UnreadableError as error:
            raise UserError(f"{error}: {_REQUIRED}") from error
        except TypeError as error:
            raise UserError(f"{where} is damaged ({error}): {_REQUIRED}") from error
        if len(self) < at_least:
            raise UserError(f"{where} is missing, or lacks some of the run's {at_least} rollbacks: {_REQUIRED}")

    def __len__(self) -> int:
        return len(self._detours)

    def add(self, rollback: Rollback, after: int, *, write: bool) -> None:
        """Adds a return from the bad step to step `after`. One process passes `write` and records it first.

        Raises DivergenceError after too many rollbacks.
        """
        if len(self._detours) >= _MAX_ROLLBACKS:
            raise DivergenceError(f"{rollback}; the run was rolled back {len(self)} times already: giving up")
        self._detours.append(_Detour(after=after, bad=rollback.step, batches=rollback.step - after))
        if write:
            self._workdir.write_json(
                ROLLBACKS,
                [dataclasses.asdict(detour) for detour in self._detours],
                error=lambda line: DivergenceError(f"{rollback}; and the rollback cannot be recorded: {line}"),
                then="fix that and rerun the command",
            )

    def stretches(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Returns the batches of the data order, as [first, end), for the steps `start` (counted from 0) to `stop` - 1."""
        borders = sorted({start, stop, *(d.after for d in self._detours if start < d.after < stop)})
        stretches = []
        for first, end in itertools.pairwise(borders):
            offset = sum(detour.batches for detour in self._detours if detour.after <= first)
            stretches.append((first + offset, end + offset))
        return stretches
