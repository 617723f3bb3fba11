"""Finds the largest batch that fits, with few compilations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A batch size, whether it fits, and the bytes that it needs per device (None: unknown)."""

    batch_size: int
    fits: bool
    needed: int | None


def largest_batch(
    attempt: Callable[[int], Attempt], *, start: int, unit: int, most: int, fixed: int, capacity: int, max_attempts: int
) -> list[Attempt]:
    """Tries multiples of `unit` from `start` up to `most`, until the largest that fits is known or the attempts are used up.

    Known means to within one unit, or to within 1/32 of the batch size if units are smaller.
    """
    tried: list[Attempt] = []
    guess = start
    while len(tried) < max_attempts:
        tried.append(attempt(guess))
        low, high = _ends(tried)
        if _is_known(low, high, unit):
            break
        guess = max(int(_predict(tried, fixed, capacity)) // unit * unit, low // unit * unit + _step(low, unit))
        guess = min(guess, most // unit * unit if high is None else _next_below(high, unit))
        if guess <= low:
            break
    return tried


def _predict(tried: list[Attempt], fixed: int, capacity: int) -> float:
    """Predicts the batch size that fills the memory by extrapolation.

    The line goes from `fixed` bytes at batch size 0 through the first attempt, later through the last two. Near capacity the
    compiler rematerializes, and its figure for programs that do not fit is not linear in the batch size. So extrapolate by at
    most 25 % when memory is nearly full; if nothing has fitted after two attempts, shrink by 25 % until something fits.
    """
    last = tried[-1]
    known = [(item.batch_size, item.needed) for item in tried if item.needed is not None][-2:]
    if not known:
        return last.batch_size * (2 if last.fits else 0.5)
    if len(tried) > 1 and not any(item.fits for item in tried):
        return 0.75 * last.batch_size
    (b0, m0), (b1, m1) = known if len(known) == 2 else [(0, fixed), known[0]]
    slope = (m1 - m0) / (b1 - b0)
    nearly_full = 0.8 * capacity < m1 <= capacity
    if slope <= 0:
        return b1 * (1.25 if nearly_full else 2)
    predicted = b1 + (capacity - m1) / slope
    return min(predicted, 1.25 * b1) if nearly_full else predicted


def _ends(tried: list[Attempt]) -> tuple[int, int | None]:
    """Returns the largest batch that fits (0: none) and the smallest that does not."""
    low = max((item.batch_size for item in tried if item.fits), default=0)
    return low, min((item.batch_size for item in tried if not item.fits), default=None)


def _step(size: int, unit: int) -> int:
    return max(unit, size // 32 // unit * unit)


def _next_below(high: int, unit: int) -> int:
    return (high - _step(high, unit) + unit - 1) // unit * unit


def _is_known(low: int, high: int | None, unit: int) -> bool:
    return high is not None and _next_below(high, unit) <= low


def summarize_search(tried: list[Attempt], unit: int, num_devices: int) -> dict[str, Any]:
    """Summarises a search for the report, with a sentence for users."""
    low, high = _ends(tried)
    text = f"{low}, {low // num_devices} per device" if low else "none of those tried"
    if not _is_known(low, high, unit):
        text += f" ({'a larger one' if low else 'another'} may fit: not tried)"
    text += (
        f"; tried {', '.join(str(item.batch_size) for item in tried)}, in steps of {unit} (mixing groups and devices)"
    )
    return {
        "largest": low or None,
        "smallest_refused": high,
        "unit": unit,
        "tried": [dataclasses.asdict(item) for item in tried],
        "text": text,
    }
