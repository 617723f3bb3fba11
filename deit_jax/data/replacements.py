"""The count of training images that could not be used and were replaced by others."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence

_MAX_WARNINGS = 10  # images named one by one; the rest are counted


class Replacements:
    """Told of each batch's replaced images, in order.

    Args:
        warn: told of the first few images at once, of their number by `tell_total`.
    """

    def __init__(self, warn: Callable[[str], None] = warnings.warn):
        self._warn = warn
        self._after: list[int] = []  # replacements in all batches up to each
        self._images: Counter[str] = Counter()

    def add(self, lines: Sequence[str]) -> None:
        """Count a batch: a line for each of its replaced images."""
        for line in lines:
            if line not in self._images and len(self._images) < _MAX_WARNINGS:
                self._warn(f"replaced: {line}")
            self._images[line] += 1
        self._after.append((self._after[-1] if self._after else 0) + len(lines))

    def count(self, batches: int) -> int:
        """Replacements in the first so many batches, of this process."""
        return self._after[batches - 1] if batches else 0

    def tell_total(self) -> None:
        """Warn of the number, if there is one."""
        if self._images:
            self._warn(
                f"{len(self._images)} image(s) could not be used and were replaced {self._images.total()} times by the next ones"
            )
