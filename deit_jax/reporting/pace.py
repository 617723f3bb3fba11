"""How fast a run goes and when it will be done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class Pace:
    """Seconds a step, over the steps since the last `restart`, so that compiling, evaluating and saving do not count.

    Waiting for data is measured apart: a batch is late if the device has done all its work when the batch arrives.
    """

    def __init__(self) -> None:
        self._waited = 0.0
        self._steps = 0
        self._seconds = 0.0
        self._started: float | None = None
        self._window = 0

    def restart(self) -> None:
        """Begin a new stretch of steps from now; what was measured before stays in the average."""
        self._started = time.monotonic()
        self._window = 0

    def waiting(self, batches: Iterable[Item], device_is_idle: Callable[[], bool]) -> Iterator[Item]:
        """The same items; while the pace runs, the time is counted that each late one took to come.

        It may be more than the device was idle, by at most the length of a step.
        """
        iterator = iter(batches)
        while True:
            before = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            if self._started is not None and device_is_idle():
                self._waited += time.monotonic() - max(before, self._started)
            yield item

    def step(self) -> None:
        """Count a step."""
        self._window += 1

    def pause(self) -> None:
        """End the stretch."""
        if self._started is not None:
            self._seconds += time.monotonic() - self._started
            self._steps += self._window
        self._started = None

    @property
    def steps(self) -> int:
        """How many steps have been counted."""
        return self._steps + (self._window if self._started is not None else 0)

    def seconds_per_step(self, steps: int | None = None) -> float | None:
        """The mean so far; None before the first measured step.

        steps: how many are known to be done by now, where others have been counted that the device is still at; None: all.
        """
        steps = self.steps if steps is None else steps
        return self._elapsed() / steps if steps else None

    def data_wait(self) -> float | None:
        """The share of the time so far, 0 to 1, that late batches took to come; None before the first measured step."""
        return min(self._waited / self._elapsed(), 1.0) if self.steps and self._elapsed() else None

    def _elapsed(self) -> float:
        return self._seconds + (time.monotonic() - self._started if self._started is not None else 0.0)


def duration(seconds: float) -> str:
    """Seconds for people: 45s, 3m 20s, 2h 05m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60:02d}s"
    return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"
