"""Images in the forms that users have: paths, files, encoded bytes, PIL images, arrays."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deit_jax.data.decoding import decode
from deit_jax.data.pillow_images import muted, rgb
from deit_jax.data.sources import DataError
from deit_jax.errors import first_line, shortened
from deit_jax.printable import printable


def read_image(image: Any, what: str = "the image") -> np.ndarray:
    """Reads an image as uint8[H, W, 3], decoded like training images; raises DataError if it cannot be read or decoded.

    Args:
        image: a path; a file opened for reading bytes, read from its beginning if it is seekable; the bytes of an encoded image;
            a PIL image; or a uint8 array [H, W, 3], [H, W, 1] or [H, W].
        what: its name in messages, unless it is a path.
    """
    if isinstance(image, str | os.PathLike):
        what = shortened(printable(image))
        image = _read_file(image, what)
    elif hasattr(image, "read"):
        image = _read_opened(image, what)
    elif isinstance(image, bytes | bytearray | memoryview):
        image = bytes(image)
    elif not isinstance(image, Image.Image | np.ndarray):
        raise DataError(
            f"{what} is of type {type(image).__name__}: give a path, an open file, bytes of an encoded image, a PIL image or a "
            "uint8 array [height, width, 3]"
        )
    try:
        if isinstance(image, Image.Image):
            with muted():
                pixels = rgb(image)
        else:
            pixels = decode(image)
    except DataError as error:
        raise DataError(f"{what}: {error}") from error
    except Exception as error:  # a PIL image is decoded when its pixels are accessed
        raise DataError(
            f"{what} cannot be decoded ({str(error).splitlines()[0] if str(error) else error!r})"
        ) from error
    if 0 in pixels.shape:
        raise DataError(f"{what} has no pixels: its shape is {list(pixels.shape)}")
    return pixels


def is_one_image(images: Any) -> bool:
    """Whether `images` is a single image for `read_image` rather than an iterable of images; files and bytes are iterable too."""
    if isinstance(images, np.ndarray):
        return images.ndim != 4
    one = str | os.PathLike | bytes | bytearray | memoryview | Image.Image
    return isinstance(images, one) or hasattr(images, "read") or not isinstance(images, Iterable)


# A URL. pathlib collapses double slashes; a single letter is a Windows drive.
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}|(data):", re.IGNORECASE)
_ADDRESS_ADVICE = {
    "data": "decode the part after the comma (base64.b64decode) and give the bytes",
    "file": "give only the path",
}


def _read_file(image: str | os.PathLike[str], what: str) -> bytes:
    try:
        return Path(os.path.expanduser(image)).read_bytes()
    except (OSError, ValueError) as error:  # ValueError for a name with a zero byte
        if address := _ADDRESS.match(str(image)):
            scheme = (address[1] or address[2]).lower()
            other = "download the image, and give its bytes, the open file or its path"
            advice = _ADDRESS_ADVICE.get(scheme, other)
            raise DataError(f"{what} is a URL, not a file: {advice}") from None
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{what}: there is no such file") from None
        if isinstance(error, IsADirectoryError):
            raise DataError(f"{what} is a folder: give the images in it") from None
        raise DataError(f"{what} cannot be read ({getattr(error, 'strerror', error)})") from error


def _read_opened(file: Any, what: str) -> bytes:
    """Reads an open file from its beginning, like PIL.Image.open; a stream that is not seekable from its current position."""
    try:
        if getattr(file, "seekable", lambda: False)():
            file.seek(0)
        content = file.read()
    except (OSError, ValueError) as error:  # ValueError for a closed file
        raise DataError(f"{what}: the open file cannot be read ({first_line(error)})") from error
    if not isinstance(content, bytes | bytearray):
        raise DataError(
            f"{what}: read() returns {type(content).__name__}, not bytes: open the file in binary mode ('rb')"
        )
    return bytes(content)
