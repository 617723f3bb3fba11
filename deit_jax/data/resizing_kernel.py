"""The arithmetic of Pillow's 8-bit bicubic resize, compiled by numba to vector instructions.

Pillow weights the pixels with 22-bit integers in 32-bit sums. These are exact, so any order of additions gives Pillow's bits. The
weights come from `resizing.taps`.

Compiled on first import (two seconds) and cached by numba: next to this file, or in the user's cache folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import boolean, int64, njit, types, void
from numpy import int32, uint8, uint64

from deit_jax.cache_folder import has_home
from deit_jax.data.resizing import BITS as _BITS
from deit_jax.data.resizing import taps

_HALF = 1 << (_BITS - 1)
_LANES = 16  # rows per step of the horizontal pass, in two words of eight bytes
_PIXEL = 3 * _LANES  # bytes of a pixel of all these rows
_GROUP = 4  # taps that are summed at a time; `taps` pads the weights with zeros to a multiple of it
_IMAGE = types.Array(types.uint8, 2, "C", readonly=True)  # Pillow's pixels are read-only; this type accepts both
_OUT = types.Array(types.uint8, 2, "C")
_BYTES, _SUMS = types.Array(types.uint8, 1, "C"), types.Array(types.int32, 1, "C")
_ROW, _WORDS = types.Array(types.uint8, 1, "C", readonly=True), types.Array(types.uint64, 1, "C")
_WHERE, _WEIGHTS = types.Array(types.int64, 2, "C"), types.Array(types.int32, 2, "C")


def _compiled(signature: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def compile_it(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            # For a user without a home numba would create a folder named "~" in the current folder.
            return njit(signature, cache=has_home(), nogil=True, error_model="numpy")(function)
        except RuntimeError:  # no writable folder
            return njit(signature, nogil=True, error_model="numpy")(function)

    return compile_it


_taps = _compiled(types.Tuple((_WHERE, _WEIGHTS))(int64, int64, int64, int64))(taps)


@_compiled(void(_WHERE, int64))
def _shift(where: np.ndarray, start: int) -> None:
    """Makes the input pixels in `where` relative to `start`."""
    for i in range(where.shape[0]):
        where[i, 0] -= start


@_compiled(void(_SUMS, _BYTES, int64))
def _round(sums: np.ndarray, out: np.ndarray, count: int) -> None:
    for j in range(count):
        out[j] = uint8(min(max(sums[j] >> _BITS, int32(0)), int32(255)))


@_compiled(void(_IMAGE, int64, int64, int64, _WHERE, _WEIGHTS, _OUT))
def _resize_columns(
    image: np.ndarray, top: int, start: int, stop: int, where: np.ndarray, weights: np.ndarray, out: np.ndarray
) -> None:
    """Vertical pass over the bytes [start, stop) of each row, one row of sums at a time."""
    count = stop - start
    sums = np.empty(count, np.int32)
    for y in range(out.shape[0]):
        sums[:] = _HALF
        for t in range(where[y, 1]):
            weight, row = weights[y, t], image[top + where[y, 0] + t, start:stop]
            for j in range(count):
                sums[j] = int32(sums[j] + int32(int32(row[j]) * weight))
        _round(sums, out[y], count)


@_compiled(void(*(_ROW,) * 8, _WORDS, int64))
def _interleave(
    r0: np.ndarray,
    r1: np.ndarray,
    r2: np.ndarray,
    r3: np.ndarray,
    r4: np.ndarray,
    r5: np.ndarray,
    r6: np.ndarray,
    r7: np.ndarray,
    words: np.ndarray,
    half: int,
) -> None:
    """Writes byte i of eight rows to word 2 i + half. As arithmetic, the compiler makes vector instructions of it."""
    for i in range(len(r0)):
        low = (
            uint64(r0[i]) | (uint64(r1[i]) << uint64(8)) | (uint64(r2[i]) << uint64(16)) | (uint64(r3[i]) << uint64(24))
        )
        high = (
            uint64(r4[i]) | (uint64(r5[i]) << uint64(8)) | (uint64(r6[i]) << uint64(16)) | (uint64(r7[i]) << uint64(24))
        )
        words[2 * i + half] = low | (high << uint64(32))


@_compiled(void(_IMAGE, int64, int64, int64, int64, _WHERE, _WEIGHTS, _OUT))
def _resize_rows(
    image: np.ndarray,
    top: int,
    start: int,
    stop: int,
    height: int,
    where: np.ndarray,
    weights: np.ndarray,
    out: np.ndarray,
) -> None:
    """Horizontal pass over the bytes [start, stop) of `height` rows.

    Neighboring output pixels have different taps, but rows have the same ones. So _LANES rows are interleaved by byte, summed
    together, and separated again. Several taps at a time save loads and stores of the sums; those too many have the weight 0.
    """
    count, width = stop - start, where.shape[0]
    # Zeros behind the last pixel, for the taps too many.
    words, result_words = np.zeros((count + 3 * _GROUP) * 2, np.uint64), np.empty(width * 3 * 2, np.uint64)
    interleaved, result = words.view(np.uint8), result_words.view(np.uint8)
    sums = np.empty(_PIXEL, np.int32)
    last = top + height - 1
    for y in range(0, height, _LANES):
        for half in range(2):
            r = top + y + 8 * half
            _interleave(
                image[min(r, last), start:stop],
                image[min(r + 1, last), start:stop],
                image[min(r + 2, last), start:stop],
                image[min(r + 3, last), start:stop],
                image[min(r + 4, last), start:stop],
                image[min(r + 5, last), start:stop],
                image[min(r + 6, last), start:stop],
                image[min(r + 7, last), start:stop],
                words,
                half,
            )
        for x in range(width):
            begin, taps_left = where[x, 0] * _PIXEL, where[x, 1]
            for j in range(_PIXEL):
                sums[j] = _HALF
            t = 0
            while taps_left > 0:
                pixels = interleaved[begin + t * _PIXEL : begin + (t + _GROUP) * _PIXEL]
                w0, w1, w2, w3 = weights[x, t], weights[x, t + 1], weights[x, t + 2], weights[x, t + 3]
                if taps_left > 2:
                    for j in range(_PIXEL):
                        one = int32(int32(pixels[j]) * w0) + int32(int32(pixels[j + _PIXEL]) * w1)
                        two = int32(int32(pixels[j + 2 * _PIXEL]) * w2) + int32(int32(pixels[j + 3 * _PIXEL]) * w3)
                        sums[j] = int32(sums[j] + int32(one + two))
                else:
                    for j in range(_PIXEL):
                        one = int32(int32(pixels[j]) * w0) + int32(int32(pixels[j + _PIXEL]) * w1)
                        sums[j] = int32(sums[j] + int32(one))
                t += _GROUP
                taps_left -= _GROUP
            _round(sums, result[x * _PIXEL : (x + 1) * _PIXEL], _PIXEL)
        for r in range(min(_LANES, height - y)):
            row, half, shift = out[y + r], r >> 3, uint64(8 * (r & 7))
            for i in range(width * 3):
                row[i] = uint8((result_words[2 * i + half] >> shift) & uint64(255))


@_compiled(void(_IMAGE, int64, int64, int64, int64, int64, int64, int64, int64, boolean, _OUT))
def resize_rows(
    image: np.ndarray,
    top: int,
    left: int,
    height: int,
    width: int,
    new_height: int,
    new_width: int,
    new_top: int,
    new_left: int,
    vertical_first: bool,
    out: np.ndarray,
) -> None:
    """Resizes the box [top, top + height) x [left, left + width) of an image to new_height x new_width pixels.

    Only the part that `out` holds is computed: rows from new_top and columns from new_left.

    image: uint8[H, 3 W]; out: uint8[h, 3 w]. vertical_first: order of the passes; the intermediate image is rounded to uint8.
    """
    rows, columns = out.shape[0], out.shape[1] // 3
    where_x, weights_x = _taps(width, new_width, new_left, columns)
    where_y, weights_y = _taps(height, new_height, new_top, rows)
    # The input of the window: the taps of both passes ascend.
    start, stop = where_x[0, 0], where_x[columns - 1, 0] + where_x[columns - 1, 1]
    first, last = where_y[0, 0], where_y[rows - 1, 0] + where_y[rows - 1, 1]
    if height == new_height:
        _shift(where_x, start)
        _resize_rows(image, top + new_top, (left + start) * 3, (left + stop) * 3, rows, where_x, weights_x, out)
    elif width == new_width:
        _resize_columns(image, top, (left + new_left) * 3, (left + new_left + columns) * 3, where_y, weights_y, out)
    elif vertical_first:
        between = np.empty((rows, (stop - start) * 3), np.uint8)
        _resize_columns(image, top, (left + start) * 3, (left + stop) * 3, where_y, weights_y, between)
        _shift(where_x, start)
        _resize_rows(between, 0, 0, between.shape[1], rows, where_x, weights_x, out)
    else:
        between = np.empty((last - first, columns * 3), np.uint8)
        _shift(where_x, start)
        _resize_rows(
            image, top + first, (left + start) * 3, (left + stop) * 3, last - first, where_x, weights_x, between
        )
        _shift(where_y, first)
        _resize_columns(between, 0, 0, columns * 3, where_y, weights_y, out)
