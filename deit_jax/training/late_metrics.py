"""Reads the metrics of the steps late, so that the device never waits for the host, then judges and logs them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from deit_jax import console
from deit_jax.parallel.in_advance import Unfinished
from deit_jax.reporting.run_log import RunLog
from deit_jax.reporting.speed import Item, Pace, Speed
from deit_jax.training.divergence import READ_EVERY, Watch
from deit_jax.training.host_speeds import HostSpeeds, row_of
from deit_jax.training.losses import Metrics
from deit_jax.training.plan import Plan
from deit_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class _Due:
    """A step whose metrics are due."""

    step: int
    metrics: Metrics | None  # to log; None: the step is only judged
    measured: int  # number of steps that the clock has counted, including this one
    hosts: Any = None  # the figures of the processes, from `HostSpeeds.sent`


class LateMetrics:
    """Judges every step and logs some, each after the next step has been dispatched; also times the steps.

    `note` takes a step that was just dispatched, and reads an earlier one if it is due. `settled` reads all that remain. Rule
    numbers refer to `deit_jax/training/loop.py`.
    """

    def __init__(
        self, plan: Plan, watch: Watch, log: RunLog, speed: Speed, *, log_every: int, hosts: HostSpeeds | None = None
    ) -> None:
        self._plan, self._watch, self._log, self._speed, self._hosts = plan, watch, log, speed, hosts
        self._log_every = log_every
        self._pace = Pace()
        self._newest_loss: Any = None  # an array, whose `is_ready` JAX's types do not declare
        self._unfinished = Unfinished()
        self._due: _Due | None = None

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yields the batches, and counts the time that the device waits for each."""
        return self._pace.waiting(batches, lambda: self._newest_loss is None or self._newest_loss.is_ready())

    def note(self, step: int, metrics: Metrics) -> None:
        """Takes a step that was dispatched, then reads the one before it if it is due (rule 6).

        Waits for an earlier step if too many are not finished, see `Unfinished`.
        """
        self._pace.step()
        metrics = self._watch.note(step, metrics)
        self._newest_loss = metrics["loss"]
        self._unfinished.note(self._newest_loss)
        self._read_due()
        if step % self._log_every == 0 or step in (1, self._plan.total_steps):
            hosts = None if self._hosts is None else self._hosts.sent(self._pace.data_wait())
            self._due = _Due(step, metrics, self._pace.steps, hosts)
        elif step % READ_EVERY == 0:
            self._due = _Due(step, None, self._pace.steps)

    def start_clock(self, state: TrainState) -> None:
        """Waits for the first step, which includes compiling, and starts the clock (rule 7)."""
        jax.block_until_ready(state)
        self._pace.restart()

    @contextlib.contextmanager
    def settled(self, step: int, state: TrainState) -> Iterator[None]:
        """Inside, `state` is computed, all steps up to `step` are judged and logged if due, and the clock is stopped.

        Rules 1, 2 and 7 require this before an evaluation or a save. Raises DivergenceError or Rollback.
        """
        jax.block_until_ready(state)
        self._pace.pause()
        self._read_due()
        self._watch.read(through=step)
        yield
        self._pace.restart()

    def seconds_per_step(self) -> float | None:
        """Returns the mean so far; None before the first timed step."""
        return self._pace.seconds_per_step()

    def waited(self) -> float:
        """Returns the seconds spent waiting for data while steps were timed."""
        return self._pace.waited

    def _read_due(self) -> None:
        due, self._due = self._due, None
        if due is None:
            return
        self._watch.read(through=due.step)
        if due.metrics is not None:
            jax.block_until_ready(due.metrics)  # so that the time covers only finished steps
            self._write(due.step, due.metrics, self._pace.seconds_per_step(due.measured), row_of(due.hosts))

    def _write(self, step: int, metrics: Metrics, seconds_per_step: float | None, hosts: dict[str, float]) -> None:
        """Writes a row and prints a line, without speeds for the first step."""
        values = {f"train/{name}": float(value) for name, value in jax.device_get(metrics).items()}
        values["epoch"] = step / self._plan.steps_per_epoch
        rates = data_wait = eta = None
        if seconds_per_step is not None:
            rates, data_wait = self._speed.metrics(seconds_per_step), self._pace.data_wait() or 0.0
            eta = seconds_per_step * (self._plan.total_steps - step)
            values |= rates | {"data_wait": data_wait} | hosts
        self._log.write(step, values)
        console.progress(
            step=step,
            total_steps=self._plan.total_steps,
            epoch=values["epoch"],
            loss=values["train/loss"],
            learning_rate=values["train/learning_rate"],
            speed=rates,
            data_wait=data_wait,
            hosts=hosts,
            eta=eta,
            parts=_parts(values),
        )


def _parts(values: Mapping[str, float]) -> dict[str, float] | None:
    """Returns the parts of a loss with a teacher for the console; None without a teacher, or if a registered loss has others."""
    names = ("class_loss", "distillation_loss", "teacher_agreement")
    found = {name: values[f"train/{name}"] for name in names if f"train/{name}" in values}
    return found if len(found) == len(names) else None
