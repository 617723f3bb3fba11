"""A profiler's trace of a few steps of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from deit_jax.reporting import console


class Profile:
    """Traces `steps` steps after step `start` into `folder`, for TensorBoard's profiler or Perfetto; nothing if `steps` is 0.

    A context manager: what was traced is written, also if the run ends before.
    """

    def __init__(self, folder: Path, start: int, steps: int) -> None:
        self._folder, self._first, self._last = folder, start + 1, start + steps
        self._running, self._newest = False, start

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:  # the run ended within the steps asked for
            self._stop(self._newest)

    def before(self, step: int) -> None:
        """To be called before a step is given to the device."""
        if step == self._first <= self._last:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, results: Any) -> None:
        """To be called with what the step returned; waits for it after the last traced step only."""
        if self._running and step == self._last:
            jax.block_until_ready(results)
            self._stop(step)
        self._newest = step

    def _stop(self, step: int) -> None:
        jax.profiler.stop_trace()
        self._running = False
        console.say(f"a profile of steps {self._first} to {step} is in {self._folder}")
