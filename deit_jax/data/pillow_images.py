"""What Pillow has opened, as RGB of 8 bits, without a word on the console.

Pillow's own conversion clips values above 255, so that 16-bit, 32-bit and floating-point greys become white or black. Here the
greys whose white the format defines are scaled, and all others are refused.
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

# 16-bit greys whose format says that 0 is black and all bits set is white; None: an image that a program made. Not FITS and
# McIDAS, which keep measurements.
_FULL_RANGE = (None, "PNG", "PPM", "TIFF", "JPEG2000", "IM")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF and a value


class _WhileReading(threading.local):
    """True of Pillow's modules and log records while this thread is in `muted`.

    It stands for the pattern of modules in an entry of `warnings.filters`. So the entry says nothing about other modules, other
    threads or Pillow's other users, and unlike `warnings.catch_warnings` it need not be taken back.
    """

    depth = 0

    def match(self, module: str) -> bool:
        return self.depth > 0 and module.startswith("PIL.")

    def filter(self, record: logging.LogRecord) -> bool:
        return self.depth == 0


_reading = _WhileReading()
_FILTER: Any = ("ignore", None, Warning, _reading, 0)
_LOGGERS = ("PIL.TiffImagePlugin",)  # that say more than debugging messages
_lock = threading.Lock()


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Nothing that Pillow warns of in this thread (large photographs, damaged EXIF, odd palettes) reaches the console."""
    filters: list[Any] = warnings.filters  # type: ignore[assignment]  # which the stubs call a Sequence
    if filters[:1] != [_FILTER]:
        with _lock:
            filters[:] = [_FILTER, *(entry for entry in filters if entry != _FILTER)]
            for name in _LOGGERS:
                logging.getLogger(name).addFilter(_reading)  # once, however often it is asked for
    _reading.depth += 1
    try:
        yield
    finally:
        _reading.depth -= 1


def rgb(image: Image.Image) -> np.ndarray:
    """uint8 `[H, W, 3]` of an opened image of any mode.

    Colours and 8-bit greys are converted as Pillow does, transparency is dropped. 16-bit greys are scaled.

    Raises:
        DataError: nothing says which value is white: 32-bit and floating-point pixels, 16-bit ones of measuring formats or that
            hold no value above 255. Else what Pillow raises for a damaged file.
    """
    mode = image.mode
    if mode == "La":  # Pillow converts it to LA alone
        image = image.convert("LA")
    if mode == "F":
        raise DataError(f"its pixels are floating-point numbers, and nothing says which value is white: {TO_UINT8}")
    if mode == "I" and image.format != "PPM":  # Pillow has scaled a PPM's values to 65535 by the maximum in its header
        raise DataError(f"its pixels are 32-bit or signed integers, and nothing says which value is white: {TO_UINT8}")
    if mode.startswith("I"):
        return np.repeat(_scaled(image)[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def _scaled(image: Image.Image) -> np.ndarray:
    """uint8 `[H, W]` of 16-bit greys."""
    if image.format not in _FULL_RANGE:
        raise DataError(
            f"its pixels are 16-bit measurements ({image.format}), and nothing says which value is white: {TO_UINT8}"
        )
    grey = np.asarray(image).astype(np.uint32)
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    white = 4095 if tags.get(_BITS_PER_SAMPLE) == (12,) else 65535  # 12 bits are read into 16 as they are
    if grey.size and 0 < grey.max() <= 255:
        raise DataError(
            f"its pixels have 16 bits and none exceeds {grey.max()}, which is black beside a white of {white}: if these are "
            "8-bit values, save them as such (image.astype(np.uint8))"
        )
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts 8-bit greys only
        grey = white - np.minimum(grey, white)
    return ((grey * 255 + white // 2) // white).astype(np.uint8)
