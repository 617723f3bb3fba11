"""Measures the speed of a run, and converts it to images and FLOPs per second."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from deit_jax.models.flops import TrainFlops

Item = TypeVar("Item")


class Pace:
    """Measures seconds per step between `restart` and `pause`, which exclude compiling, evaluating and saving.

    Also measures the wait for data: a batch is late if the device is idle when the batch arrives.
    """

    def __init__(self) -> None:
        self.waited = 0.0  # seconds waiting for late batches
        self._steps = 0
        self._seconds = 0.0
        self._started: float | None = None  # None: paused
        self._window = 0  # steps since then

    def restart(self) -> None:
        """Starts measuring; earlier measurements stay in the average."""
        self._started = time.monotonic()
        self._window = 0

    def waiting(self, batches: Iterable[Item], device_is_idle: Callable[[], bool]) -> Iterator[Item]:
        """Yields `batches`, and counts the wait for late ones while measuring.

        The wait may exceed the device's idle time by at most one step.
        """
        iterator = iter(batches)
        while True:
            before = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            if self._started is not None and device_is_idle():
                self.waited += time.monotonic() - max(before, self._started)
            yield item

    def step(self) -> None:
        """Counts a step."""
        self._window += 1

    def pause(self) -> None:
        """Stops measuring."""
        if self._started is not None:
            self._seconds += time.monotonic() - self._started
            self._steps += self._window
        self._started = None

    @property
    def steps(self) -> int:
        """The number of steps counted."""
        return self._steps + (self._window if self._started is not None else 0)

    def seconds_per_step(self, steps: int | None = None) -> float | None:
        """Returns the mean so far; None before the first measured step.

        steps: the number of finished steps, if the device is still running later ones; None: all that were counted.
        """
        steps = self.steps if steps is None else steps
        return self._elapsed() / steps if steps else None

    def data_wait(self) -> float | None:
        """Returns the share of the time, 0 to 1, spent waiting for batches; None before the first measured step."""
        return min(self.waited / self._elapsed(), 1.0) if self.steps and self._elapsed() else None

    def _elapsed(self) -> float:
        return self._seconds + (time.monotonic() - self._started if self._started is not None else 0.0)


@dataclasses.dataclass(frozen=True)
class Speed:
    """Converts seconds per step to figures that compare across batches, devices and models."""

    batch_size: int  # global
    num_devices: int
    flops: TrainFlops  # per training image
    peak_flops: float | None  # FLOP/s of one device; None if unknown

    def metrics(self, seconds_per_step: float) -> dict[str, float]:
        """Returns the speeds as in metrics.jsonl.

        images_per_second             of the global batch
        images_per_second_per_device
        model_tflops_per_second       10^12 model FLOP/s per device, student and teacher together
        mfu, mfu_teacher              model FLOPs utilization, 0 to 1: that rate, and the teacher's part in it, divided by the
                                      peak; left out if the peak is unknown. Recomputation (remat) does not count.
        """
        images = self.batch_size / seconds_per_step / self.num_devices
        values = {
            "images_per_second": images * self.num_devices,
            "images_per_second_per_device": images,
            "model_tflops_per_second": images * self.flops.total / 1e12,
        }
        if self.peak_flops is not None:
            values["mfu"] = images * self.flops.total / self.peak_flops
            values["mfu_teacher"] = images * self.flops.teacher / self.peak_flops
        return values
