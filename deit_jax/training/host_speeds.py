"""Whether the hosts keep up with the devices: what the model needs, what each host reads, and which host is the slowest."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from deit_jax import console
from deit_jax.data.reading_speed import ReadingSpeed
from deit_jax.parallel.distributed import compiled_together, gather
from deit_jax.parallel.sharding import put_batch, replicated
from deit_jax.reporting.speed import Speed

ASSUMED_MFU = 0.35  # of a vision transformer that is well compiled, see docs/performance.md


def needed_images_per_second(speed: Speed) -> float | None:
    """Returns the images/s that each host must read at ASSUMED_MFU; None if the devices' peak is unknown, as on a CPU."""
    if speed.peak_flops is None:
        return None
    return ASSUMED_MFU * speed.peak_flops * speed.num_devices / speed.flops.total / jax.process_count()


def described_need(needed: float) -> str:
    """Describes `needed_images_per_second` for the start of a run."""
    each = " in each process" if jax.process_count() > 1 else ""
    return f"{needed:,.0f} images/s{each} would keep the devices busy, at an assumed MFU of {100 * ASSUMED_MFU:.0f} %"


def compare_with_need(speed: Speed, reading: ReadingSpeed) -> None:
    """Prints what the hosts read so far, as a warning if the slowest reads less than needed. All processes call it.

    Prints nothing if the need is unknown.
    """
    needed = needed_images_per_second(speed)
    if needed is None:
        return
    rates = [rate for rate in gather(reading.images_per_second(), "the reading speeds") if rate is not None]
    if rates:
        line, too_slow = compared(rates, needed)
        (console.warn if too_slow else console.say)(line)


def compared(rates: Sequence[float], needed: float) -> tuple[str, bool]:
    """Returns a line about the images/s that each process reads and needs, and whether the slowest reads too few."""
    slowest = min(rates)
    who = f"the slowest process (number {rates.index(slowest)})" if len(rates) > 1 else "this host"
    line = f"{who} reads {slowest:,.0f} images/s, and {needed:,.0f} are needed at an MFU of {100 * ASSUMED_MFU:.0f} %"
    if slowest >= needed:
        return line, False
    return (
        f"{line}: the devices will wait for data. Give it more cores or smaller images; data.num_threads and "
        "data.num_workers set how many cores it uses (docs/data.md)"
    ), True


class HostSpeeds:
    """Compares the processes of a run, without waiting for any: `sent` is dispatched between steps, and `row` read later."""

    def __init__(self, mesh: Mesh, reading: ReadingSpeed) -> None:
        self._mesh, self._reading = mesh, reading
        self._local = sum(device.process_index == jax.process_index() for device in mesh.devices.flat)
        self._exchange = compiled_together(jax.jit(lambda values: values, out_shardings=replicated(mesh)))

    def sent(self, data_wait: float | None) -> jax.Array | None:
        """Dispatches the exchange of the processes' figures; all processes call it after the same step. None for one process.

        data_wait: the share of this process's time, see `Pace.data_wait`.
        """
        if jax.process_count() == 1:
            return None
        own = np.array([jax.process_index(), self._reading.images_per_second() or np.nan, data_wait or 0.0], np.float32)
        result: jax.Array = self._exchange(put_batch(self._mesh, {"": np.tile(own, (self._local, 1))})[""])
        return result


def row_of(sent: Any) -> dict[str, float]:
    """Returns the figures of the processes for metrics.jsonl, once `HostSpeeds.sent` is computed; none for one process."""
    if sent is None:
        return {}
    by_process = {int(process): (rate, wait) for process, rate, wait in np.asarray(jax.device_get(sent)).tolist()}
    rates = {process: rate for process, (rate, _) in by_process.items() if rate == rate}
    waits = [wait for _, wait in by_process.values()]
    row = {"hosts/data_wait_slowest": max(waits), "hosts/data_wait_median": statistics.median(waits)}
    if rates:
        slowest = min(rates, key=lambda process: rates[process])
        row |= {
            "hosts/images_per_second_slowest": rates[slowest],
            "hosts/images_per_second_median": statistics.median(rates.values()),
            "hosts/slowest": float(slowest),
        }
    return row
