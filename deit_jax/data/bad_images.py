"""The count of images that could not be used: in training others replace them, in evaluation they are left out."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

OnBadImage = Literal["stop", "replace"]

_MAX_WARNINGS = 10  # images named one by one; the rest are counted


class BadImages:
    """Counts each batch's images that could not be used, in order.

    Args:
        warn: is given a line for each of the first few images at once, and their number by `warn_of_total`.
        fate: what becomes of such an image, as the lines say it.
    """

    def __init__(self, warn: Callable[[str], None] = warnings.warn, fate: str = "replaced") -> None:
        self._warn, self._fate = warn, fate
        self._after: list[int] = []  # images in all batches up to each
        self._images: Counter[str] = Counter()

    def add(self, lines: Sequence[str]) -> None:
        """Count a batch: a line for each of its images that could not be used."""
        for line in lines:
            if line not in self._images and len(self._images) < _MAX_WARNINGS:
                self._warn(f"{self._fate}: {line}")
            self._images[line] += 1
        self._after.append((self._after[-1] if self._after else 0) + len(lines))

    def count(self, batches: int | None = None) -> int:
        """Such images in the first so many batches, or in all of them, of this process."""
        return self._after[-1 if batches is None else batches - 1] if self._after and batches != 0 else 0

    def warn_of_total(self) -> None:
        """Warn of the number, if there is one."""
        if self._images:
            self._warn(
                f"{len(self._images)} image(s) could not be used and were {self._fate} {self._images.total()} times"
            )
