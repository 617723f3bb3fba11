"""Converts images opened by Pillow to 8-bit RGB, without Pillow's warnings.

Pillow's own conversion clips values above 255, so that 16-bit, 32-bit and floating-point grays become white or black. This module
scales grays whose format defines the white level, and rejects all others.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from deit_jax.data.sources import TO_UINT8, DataError

# Formats whose 16-bit grays range from 0, black, to all bits set, white; None: an image made by a program. Not FITS and McIDAS,
# which hold measurements.
_FULL_RANGE = (None, "PNG", "PPM", "TIFF", "JPEG2000", "IM")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF and a value


class _WhileReading(threading.local):
    """Matches Pillow's modules and log records while this thread is in `muted`.

    It replaces the module pattern in an entry of `warnings.filters`. So the entry does not affect other modules, other threads or
    other users of Pillow, and unlike `warnings.catch_warnings` it need not be removed.
    """

    depth = 0

    def match(self, module: str) -> bool:
        return self.depth > 0 and module.startswith("PIL.")

    def filter(self, record: logging.LogRecord) -> bool:
        return self.depth == 0


_reading = _WhileReading()
_FILTER: Any = ("ignore", None, Warning, _reading, 0)
_LOGGERS = ("PIL.TiffImagePlugin",)  # loggers with more than debug messages
_lock = threading.Lock()


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Suppresses Pillow's warnings in this thread (large photographs, damaged EXIF, unusual palettes)."""
    filters: list[Any] = warnings.filters  # type: ignore[assignment]  # a Sequence in the stubs
    if filters[:1] != [_FILTER]:
        with _lock:
            filters[:] = [_FILTER, *(entry for entry in filters if entry != _FILTER)]
            for name in _LOGGERS:
                logging.getLogger(name).addFilter(_reading)  # has no effect if added before
    _reading.depth += 1
    try:
        yield
    finally:
        _reading.depth -= 1


def rgb(image: Image.Image) -> np.ndarray:
    """Converts an opened image of any mode to uint8 `[H, W, 3]`.

    Colors and 8-bit grays are converted as in Pillow, transparency is dropped, 16-bit grays are scaled.

    Raises:
        DataError: the white level is not defined: 32-bit and floating-point pixels, and 16-bit pixels of measurement formats or
            without a value above 255. For damaged files: Pillow's exceptions.
    """
    mode = image.mode
    if mode == "La":  # Pillow converts it only to LA
        image = image.convert("LA")
    if mode == "F":
        raise DataError(f"its pixels are floating-point numbers, whose white level is undefined: {TO_UINT8}")
    if mode == "I" and image.format != "PPM":  # Pillow has scaled a PPM's values to 65535 by the maximum in its header
        raise DataError(f"its pixels are 32-bit or signed integers, whose white level is undefined: {TO_UINT8}")
    if mode.startswith("I"):
        return np.repeat(_scaled(image)[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def _scaled(image: Image.Image) -> np.ndarray:
    """Scales 16-bit grays to uint8 `[H, W]`."""
    if image.format not in _FULL_RANGE:
        raise DataError(
            f"its pixels are 16-bit measurements ({image.format}), whose white level is undefined: {TO_UINT8}"
        )
    gray = np.asarray(image).astype(np.uint32)
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    white = 4095 if tags.get(_BITS_PER_SAMPLE) == (12,) else 65535  # Pillow reads 12 bits into 16 without scaling
    if gray.size and 0 < gray.max() <= 255:
        raise DataError(
            f"its pixels have 16 bits and none exceeds {gray.max()}, which is almost black if {white} is white: if these are "
            "8-bit values, save them as such (image.astype(np.uint8))"
        )
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts only 8-bit grays
        gray = white - np.minimum(gray, white)
    return ((gray * 255 + white // 2) // white).astype(np.uint8)
