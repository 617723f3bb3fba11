"""Losses and gradients that are not finite: found without making the device wait, named, and what is done about them."""

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
from deit_jax.storage.workdir import ROLLBACKS, UnreadableError, Workdir, WorkdirLike

# Of a step's metrics, those that only this module reads.
PRIVATE_METRICS = ("worst_gradient", "nonfinite_gradients")
READ_EVERY = 100  # steps, at most: how late a bad step may be found out
_MOST_SKIPPED_IN_A_ROW = 50
_MOST_ROLLBACKS = 20
_MOST_WARNINGS = 10

WriteRow = Callable[[int, dict[str, float]], None]


class DivergenceError(UserError):
    """A run that cannot go on because its numbers are not finite. The message is one line."""

    exit_status = 3


class Rollback(Exception):
    """Go back to the last checkpoint and take other data from there."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step  # the first bad one


class Watch:
    """Looks at every step's loss and gradient norm, some steps late: steps are noted as they are started and read together.

    What to do about a bad step is `on_nonfinite`: "stop" raises DivergenceError, "rollback" raises Rollback, "skip" (the step
    itself has left the weights as they were) writes a row of metrics and goes on, unless it is the 50th in a row.
    """

    def __init__(self, on_nonfinite: str, parameter_names: Sequence[str], write_row: WriteRow) -> None:
        self._do = on_nonfinite
        self._names = parameter_names
        self._write_row = write_row
        self._unread: deque[tuple[int, dict[str, jax.Array]]] = deque()
        self._in_a_row = 0
        self._told = 0

    def note(self, step: int, metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Remember a step; returns its metrics for the log."""
        names = ("loss", "grad_norm", *PRIVATE_METRICS)
        self._unread.append((step, {name: metrics[name] for name in names}))
        return {name: value for name, value in metrics.items() if name not in PRIVATE_METRICS}

    def read(self, through: int) -> None:
        """Judge the noted steps up to `through`; waits for that step. Raises what the class says."""
        due = []
        while self._unread and self._unread[0][0] <= through:
            due.append(self._unread.popleft())
        steps = [step for step, _ in due]
        for step, values in zip(steps, jax.device_get([metrics for _, metrics in due]), strict=True):
            if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
                self._in_a_row = 0
            else:
                self._act(step, values)

    def _act(self, step: int, values: dict[str, Any]) -> None:
        message = self._describe(step, values)
        if self._do == "stop":
            raise DivergenceError(
                f"{message}; nothing of it is saved. Fix the cause, or go on with "
                "--config.on_nonfinite=skip (leave such steps out) or rollback (back to the checkpoint, then other data)"
            )
        if self._do == "rollback":
            raise Rollback(step, message)
        self._in_a_row += 1
        if self._in_a_row >= _MOST_SKIPPED_IN_A_ROW:
            raise DivergenceError(
                f"{message}; {self._in_a_row} steps in a row were skipped: this does not pass by itself"
            )
        self._told += 1
        if self._told <= _MOST_WARNINGS:
            console.warn(f"{message}; skipped" + ("; further ones are only counted" * (self._told == _MOST_WARNINGS)))
        self._write_row(step, {f"nonfinite/{name}": float(values[name]) for name in ("loss", "grad_norm")})

    def _describe(self, step: int, values: dict[str, Any]) -> str:
        bad, worst = int(values["nonfinite_gradients"]), self._names[int(values["worst_gradient"])]
        gradients = f"the gradients of {bad} of {len(self._names)} parameters are not finite, first {worst}"
        if not bad:
            gradients = f"the largest gradient is that of {worst}"
        return f"step {step}: the loss is {values['loss']:g} and the gradient norm {values['grad_norm']:g}; {gradients}"


@dataclasses.dataclass(frozen=True)
class _Detour:
    after: int  # the checkpoint's step that the run went back to
    bad: int  # the step that was not finite
    batches: int  # passed over from there on


_WITHOUT_IT = "without it the run cannot go on as it was; restore it, or start from scratch in another --workdir"


class Detours:
    """The rollbacks of a run, kept in WORKDIR/rollbacks.json so that a resumed run takes the same data.

    Raises UserError if that file is damaged.
    """

    def __init__(self, workdir: WorkdirLike) -> None:
        self._workdir = Workdir.at(workdir)
        try:
            noted = self._workdir.read_json(ROLLBACKS) if self._workdir.has(ROLLBACKS) else []
            self._detours = [_Detour(**fields) for fields in noted]
        except UnreadableError as error:
            raise UserError(f"{error}: {_WITHOUT_IT}") from error
        except TypeError as error:
            raise UserError(f"{self._workdir.address(ROLLBACKS)} is damaged ({error}): {_WITHOUT_IT}") from error

    def __len__(self) -> int:
        return len(self._detours)

    def add(self, rollback: Rollback, after: int, *, write: bool) -> None:
        """Note that the run goes back from the bad step to step `after`; written before it counts, by one process.

        Raises DivergenceError if that has happened too often.
        """
        if len(self._detours) >= _MOST_ROLLBACKS:
            raise DivergenceError(
                f"{rollback}; the run has gone back {len(self)} times already: this does not pass by itself"
            )
        self._detours.append(_Detour(after=after, bad=rollback.step, batches=rollback.step - after))
        if write:
            self._workdir.write_json(
                ROLLBACKS,
                [dataclasses.asdict(detour) for detour in self._detours],
                error=lambda line: DivergenceError(f"{rollback}; and going back cannot be noted: {line}"),
                then="fix that and start again",
            )

    def stretches(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The batches of the data order, as [first, end), that the steps from `start` (counted from 0) to `stop` take."""
        borders = sorted({start, stop, *(d.after for d in self._detours if start < d.after < stop)})
        found = []
        for first, end in itertools.pairwise(borders):
            offset = sum(detour.batches for detour in self._detours if detour.after <= first)
            found.append((first + offset, end + offset))
        return found
