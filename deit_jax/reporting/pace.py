"""How fast a run goes and when it will be done."""

from __future__ import annotations

import time


class Pace:
    """Seconds a step, over the steps since the last `restart`, so that compiling, evaluating and saving do not count."""

    def __init__(self) -> None:
        self._steps = 0
        self._seconds = 0.0
        self._started: float | None = None
        self._window = 0

    def restart(self) -> None:
        """Begin a new stretch of steps from now; what was measured before stays in the average."""
        self._started = time.monotonic()
        self._window = 0

    def step(self) -> None:
        """Count a step."""
        self._window += 1

    def pause(self) -> None:
        """End the stretch."""
        if self._started is not None:
            self._seconds += time.monotonic() - self._started
            self._steps += self._window
        self._started = None

    def seconds_per_step(self) -> float | None:
        """The mean so far; None before the first measured step."""
        running = time.monotonic() - self._started if self._started is not None else 0.0
        steps = self._steps + (self._window if self._started is not None else 0)
        return (self._seconds + running) / steps if steps else None


def duration(seconds: float) -> str:
    """Seconds for people: 45s, 3m 20s, 2h 05m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60:02d}s"
    return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"
