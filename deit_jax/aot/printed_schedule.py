"""Prints what a compiled step costs by part (aot/parts.py)."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deit_jax import console
from deit_jax.aot.topologies import Chip

_MOST_EXCHANGES = 6
LIMITATIONS = (
    "measured cycles: those above are the compiler's estimates, and for a Pallas kernel its scheduled bundles or, if longer, its "
    "transfers. They compare two programs; they do not predict a clock",
    "cycles of scalar operations, of waiting for other devices, and of prefetches that come too late: they have no estimate",
    "the parts of a fusion: it counts as its largest product, else as its root; a norm or activation in a product is part of it",
)
GPU_LIMITATION = (
    "cycles: this compiler reports no schedule. FLOPs are those of matrix products and convolutions; bytes count as if nothing "
    "stayed on the chip between kernels"
)


def show_schedule(report: Mapping[str, Any], chip: Chip) -> None:
    """Prints the part "schedule" of a report of `deit_jax.modes.compile`, made for `chip`."""
    found = report["schedule"]
    images = report["batch_per_device"]
    timed = found["cycles"] is not None
    unit = "kilocycles" if timed else "GFLOP"
    console.table(
        "Per image, by part of the step (without a direction: forward)",
        ["part", f"{unit}, forward", "backward", "%", "MB of main memory, forward", "backward"],
        _rows(found["parts"], images, timed=timed),
    )
    facts: dict[str, str | Sequence[str]] = {}
    if found["seconds"] is not None:
        facts["a step"] = _time(report, chip)
    if found["kernels"]:
        facts["Pallas kernels"] = list(_kernels(found["kernels"], images))
    if found["unknown_loops"]:
        facts["loops of unknown length"] = [f"{name}: counted once" for name in found["unknown_loops"]]
    if found["exchanges"]:
        facts["exchanges"] = list(_exchanges(found, chip))
    if facts:
        console.announce("By the compiler's schedule" if timed else "In the order of the program", facts)


def _rows(parts: Iterable[Mapping[str, Any]], images: int, *, timed: bool) -> Iterable[list[str]]:
    """Rows of texts: a part's cycles or FLOPs and bytes, forward (or neither) and backward, and its share; the sum at the end."""
    key, unit = ("cycles", 1e3) if timed else ("flops", 1e9)
    amounts: dict[str, list[float]] = {}
    for part in parts:
        row = amounts.setdefault(part["name"], [0.0] * 4)
        row[part["backward"]] += part[key] / images / unit
        row[2 + part["backward"]] += part["bytes"] / images / 1e6
    total = [sum(column) for column in zip(*amounts.values(), strict=True)]
    whole = total[0] + total[1] or 1.0
    for name, row in [*sorted(amounts.items(), key=lambda item: -item[1][0] - item[1][1]), ("sum", total)]:
        share = f"{100 * (row[0] + row[1]) / whole:.1f}"
        yield [name, f"{row[0]:,.1f}", f"{row[1]:,.1f}", share, f"{row[2]:,.1f}", f"{row[3]:,.1f}"]


def _time(report: Mapping[str, Any], chip: Chip) -> list[str]:
    found, images = report["schedule"], report["batch_per_device"]
    seconds = found["seconds"]
    model = sum(report["flops_per_image"].values()) * images / chip.peak_flops
    return [
        f"{seconds * 1e3:.2f} ms: {found['cycles'] / 1e6:,.1f} million cycles at {found['clock'] / 1e9:g} GHz; the roofline's "
        f"{report['roofline']['bound'] * 1e3:.2f} ms are {100 * report['roofline']['bound'] / seconds:.0f} % of it",
        f"{images / seconds:,.0f} images/s per device, {100 * model / seconds:.0f} % of peak FLOP/s",
    ]


def _kernels(cycles: Mapping[str, float | None], images: int) -> Iterable[str]:
    """A line for the kernels with the same name, except for its number, and the same cycles."""
    counted = collections.Counter((name.rpartition(".")[0] or name, value) for name, value in cycles.items())
    for (name, value), count in counted.items():
        each = "schedule not known, counted as 0 cycles" if value is None else f"{value / images:,.0f} cycles per image"
        yield f"{count} x {name}: {each}"


def _exchanges(found: Mapping[str, Any], chip: Chip) -> Iterable[str]:
    ordered = sorted(found["exchanges"], key=lambda item: -item["sent"])
    for item in ordered[:_MOST_EXCHANGES]:
        milliseconds = item["sent"] / chip.link_bandwidth * 1e3
        line = f"{item['kind']}: {item['sent'] / 1e6:.1f} MB sent, {milliseconds:.2f} ms at the peak rate"
        if found["cycles"] is not None:
            follow, overlap = 100 * item["follows"], 100 * item["overlapped"]
            line += f"; {follow:.1f} % of the step's cycles follow it, {overlap:.1f} % overlap with it"
        yield line
    if len(ordered) > _MOST_EXCHANGES:
        yield f"and {len(ordered) - _MOST_EXCHANGES} smaller ones"
