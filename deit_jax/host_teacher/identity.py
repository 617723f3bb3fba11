"""The identity of a teacher of another framework: its logits on eight fixed images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

# Two runs of one model differ in the last digits: the number of threads, the device and the library's version change the order of
# its sums. Another model, another crop or a forgotten normalisation changes far more.
TOLERANCE = 1e-3
_IMAGES = 8  # of the identity


def changed_field(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """Returns the first field in which two identities differ; None if they are of the same teacher.

    Logits differ if the largest difference is more than TOLERANCE of the largest logit.
    """
    for field in [*recorded, *(field for field in found if field not in recorded)]:
        if field != "logits":
            if recorded.get(field) != found.get(field):
                return field
        elif relative_difference(recorded[field], found.get(field, [])) > TOLERANCE:
            return field
    return None


def relative_difference(one: Any, other: Any) -> float:
    """Returns the largest difference relative to the largest number of the first array; infinity if the shapes differ."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if one.shape != other.shape:
        return math.inf
    return float(np.abs(one - other).max(initial=0) / max(np.abs(one).max(initial=0), 1e-6))


def fixed_images(size: int) -> np.ndarray:
    """Returns the images of an identity, uint8[8, size, size, 3]: colours and waves, the same on every machine and at every size.

    Triangle waves in whole numbers, with levels, frequencies and phases from SHA-256: no library's random numbers or sines.
    """
    place = np.arange(size) * 1024 // size
    images = np.empty((_IMAGES, size, size, 3), np.uint8)
    for number in range(_IMAGES):
        drawn = iter(hashlib.sha256(f"deit_jax: image {number} of a host teacher's identity".encode()).digest())
        for channel in range(3):
            waves = np.zeros((size, size), np.int64)
            level = next(drawn) // 2  # 0 to 127
            for _ in range(3):
                down, right, phase = next(drawn) % 9 - 4, next(drawn) % 9 - 4, 2 * next(drawn)
                waves += np.abs(((down * place[:, None] + right * place) // 2 + phase) % 512 - 256)  # 0 to 256
            images[number, :, :, channel] = level + waves // 6
    return images
