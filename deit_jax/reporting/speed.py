"""How fast a run goes: seconds a step as they are measured, and what they are in images and in arithmetic."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from deit_jax.models.flops import TrainFlops

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


@dataclasses.dataclass(frozen=True)
class Speed:
    """What turns the time of a step into figures that compare across batches, devices and models."""

    batch_size: int  # global
    num_devices: int
    flops: TrainFlops  # of one training image
    peak_flops: float | None  # FLOP/s of one device at best; None where it is not known

    def metrics(self, seconds_per_step: float) -> dict[str, float]:
        """Named as in metrics.jsonl.

        images_per_second            of the global batch
        images_per_second_per_device
        model_tflops_per_second      10^12 model FLOP/s of one device, of student and teacher together
        mfu, mfu_teacher             model FLOPs utilisation, 0 to 1: that, and the teacher's part in it, of the peak rate; left
                                     out where the peak is not known. What is computed twice (remat) does not count.
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
