"""Images per second by the paper's protocol (Table 5): the largest batch that fits, 30 timed runs."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from deit_jax.errors import UserError

RUNS = 30  # the paper's
GROWTH = 1.03  # two doublings in a row that gain less end the search, unless memory limits it
_DOUBLINGS = 24


def time_runs(run: Callable[[], Any], *, runs: int = RUNS, warmup: int = 3, at_least: float = 0.0) -> list[float]:
    """Returns the seconds of each of `runs` calls until the result is ready, after `warmup` untimed calls.

    at_least: minimum of their sum, in seconds; more calls are made if necessary.
    """
    for _ in range(warmup):
        jax.block_until_ready(run())
    seconds: list[float] = []
    while len(seconds) < runs or sum(seconds) < at_least:
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return seconds


@dataclasses.dataclass(frozen=True)
class Timing:
    """Timed runs of one batch size."""

    batch_size: int  # over all devices
    seconds: list[float]  # per run

    @property
    def mean(self) -> float:
        """Images/s over all runs, as in the paper."""
        return self.batch_size * len(self.seconds) / sum(self.seconds)

    @property
    def median(self) -> float:
        """Images/s of the median run, robust against outliers."""
        return self.batch_size / statistics.median(self.seconds)


@dataclasses.dataclass(frozen=True)
class BatchSearch:
    """The batch size to measure, the rule that chose it, and the trials: (batch size, images/s, or None if it did not fit)."""

    batch_size: int
    rule: str
    tried: list[tuple[int, float | None]]


def search_batch(measure: Callable[[int], float | None], *, start: int, until_full: bool) -> BatchSearch:
    """Finds the batch size to measure by doubling `start`.

    measure: returns images/s of a batch size, None if it does not fit in memory. until_full: choose the largest that fits, as the
    paper does; otherwise (CPU) the fastest, ending after two doublings in a row that gain 3 % at most. Raises UserError if
    `start` does not fit.
    """
    tried: list[tuple[int, float | None]] = []
    for doubling in range(_DOUBLINGS):
        size = start << doubling
        speed = measure(size)
        tried.append((size, speed))
        fitting = [(rate, size) for size, rate in tried if rate is not None]
        if speed is None:
            if not fitting:
                raise UserError(f"a batch of {start} images does not fit in memory: give a smaller --batch_size")
            return BatchSearch(fitting[-1][1], f"the largest that fits of {start} and its doublings", tried)
        before = max(fitting[:-2], default=None)
        if not until_full and before is not None and max(fitting[-2:])[0] <= GROWTH * before[0]:
            rule = f"the fastest of {start} and its doublings, which ended when two of them gained no more than 3 %"
            return BatchSearch(max(fitting)[1], rule, tried)
    return BatchSearch(fitting[-1][1], f"{start} doubled {_DOUBLINGS - 1} times: it still fits", tried)


Measured = TypeVar("Measured")


def fits(measure: Callable[[], Measured]) -> Measured | None:
    """Returns the result of `measure`, or None if a device runs out of memory. Other errors propagate."""
    try:
        return measure()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
