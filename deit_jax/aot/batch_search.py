"""The largest batch that fits, by few compilations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A batch size, whether it fits, and the bytes of a device that it needs (None: not told)."""

    batch_size: int
    fits: bool
    needed: int | None


def largest_batch(
    attempt: Callable[[int], Attempt],
    *,
    start: int,
    unit: int,
    most: int,
    fixed: int,
    capacity: int,
    max_attempts: int,
) -> list[Attempt]:
    """Try multiples of `unit`, from `start` on and up to `most`, until the largest that fits is known or attempts are used up.

    Known means to within a unit, or a thirty-second of it where units are smaller.
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
    """Where the memory is full: on a line from `fixed` bytes at no image through the first attempt, then through the last two.

    Compilers squeeze what nearly fits, and what they name as needed of what does not fit is on no line. So where memory is nearly
    full the line is believed to a quarter more, and once followed in vain, to a quarter less until something fits.
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
    """The largest batch that fitted (0: none) and the smallest that did not."""
    low = max((item.batch_size for item in tried if item.fits), default=0)
    return low, min((item.batch_size for item in tried if not item.fits), default=None)


def _step(size: int, unit: int) -> int:
    return max(unit, size // 32 // unit * unit)


def _next_below(high: int, unit: int) -> int:
    return (high - _step(high, unit) + unit - 1) // unit * unit


def _is_known(low: int, high: int | None, unit: int) -> bool:
    return high is not None and _next_below(high, unit) <= low


def summarize_search(tried: list[Attempt], unit: int, num_devices: int) -> dict[str, Any]:
    """What a search came to, with a sentence for people."""
    low, high = _ends(tried)
    text = f"{low}, {low // num_devices} a device" if low else "none of those tried"
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
