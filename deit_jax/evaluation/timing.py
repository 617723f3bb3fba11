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
GROWTH = 1.03  # two doublings in a row that are not faster by this factor end the search where memory does not
_DOUBLINGS = 24


def time_runs(run: Callable[[], Any], *, runs: int = RUNS, warmup: int = 3, at_least: float = 0.0) -> list[float]:
    """Seconds of each of `runs` calls, each until its result is there; `warmup` calls before them are not counted.

    at_least: seconds that the calls take together; there are more of them if `runs` are too few for it.
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
    seconds: list[float]  # of each run

    @property
    def mean(self) -> float:
        """Images/s over all runs together: the paper's figure."""
        return self.batch_size * len(self.seconds) / sum(self.seconds)

    @property
    def median(self) -> float:
        """Images/s of the median run, which a disturbed run does not move."""
        return self.batch_size / statistics.median(self.seconds)


@dataclasses.dataclass(frozen=True)
class BatchSearch:
    """The batch size that is measured, why, and what was tried: (batch size, images/s, or None where it did not fit)."""

    batch_size: int
    rule: str
    tried: list[tuple[int, float | None]]


def search_batch(measure: Callable[[int], float | None], *, start: int, until_full: bool) -> BatchSearch:
    """The batch size to measure: `start` doubled again and again.

    measure: images/s of a batch size, None if it does not fit in memory. until_full: the largest that fits is taken, as the paper
    does; else (a CPU, whose memory says nothing) the fastest, and two doublings in a row that gain 3 % at most end the search.
    Raises UserError if not even `start` fits.
    """
    tried: list[tuple[int, float | None]] = []
    for doubling in range(_DOUBLINGS):
        size = start << doubling
        speed = measure(size)
        tried.append((size, speed))
        fitting = [(rate, size) for size, rate in tried if rate is not None]
        if speed is None:
            if not fitting:
                raise UserError(
                    f"a batch of {start} images does not fit into memory: give a smaller one (--batch_size)"
                )
            return BatchSearch(fitting[-1][1], f"the largest that fits of {start} and its doublings", tried)
        before = max(fitting[:-2], default=None)
        if not until_full and before is not None and max(fitting[-2:])[0] <= GROWTH * before[0]:
            rule = f"the fastest of {start} and its doublings, which ended when two of them gained no more than 3 %"
            return BatchSearch(max(fitting)[1], rule, tried)
    return BatchSearch(fitting[-1][1], f"{start} doubled {_DOUBLINGS - 1} times: it still fits", tried)


Measured = TypeVar("Measured")


def fits(measure: Callable[[], Measured]) -> Measured | None:
    """What `measure` returns, or None if a device runs out of memory in it. Other errors are passed on."""
    try:
        return measure()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
