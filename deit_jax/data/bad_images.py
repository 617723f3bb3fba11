"""Counts images that could not be used: in training others replace them, in evaluation they are left out."""

from __future__ import annotations

import bisect
import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

OnBadImage = Literal["stop", "replace"]

_MAX_WARNINGS = 10  # images named one by one; the rest are counted


class BadImages:
    """Counts the images of each batch that could not be used.

    Args:
        warn: called with a line for each of the first few images, and by `warn_of_total`.
        action: what happens to such an image, for the lines.
    """

    def __init__(self, warn: Callable[[str], None] = warnings.warn, action: str = "replaced") -> None:
        self._warn, self._action = warn, action
        self._batches = 0
        self._after: list[
            tuple[int, int]
        ] = []  # number of batches and cumulative count, after each batch with such images
        self._images: Counter[str] = Counter()

    def add(self, lines: Sequence[str]) -> None:
        """Adds a batch, with a line for each of its images that could not be used."""
        for line in lines:
            if line not in self._images and len(self._images) < _MAX_WARNINGS:
                self._warn(f"{self._action}: {line}")
            self._images[line] += 1
        self._batches += 1
        if lines:
            self._after.append((self._batches, self.count() + len(lines)))

    def count(self, batches: int | None = None) -> int:
        """Returns the number of such images of this process in the first `batches` batches (default: in all)."""
        found = len(self._after) if batches is None else bisect.bisect(self._after, (batches, math.inf))
        return self._after[found - 1][1] if found else 0

    def warn_of_total(self) -> None:
        """Prints a warning with the total unless it is 0."""
        if self._images:
            self._warn(
                f"{len(self._images)} image(s) could not be used and were {self._action} {self._images.total()} times"
            )
