"""Images as people hand them over: paths, files, encoded bytes, PIL images, arrays."""

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
    """uint8[H, W, 3] of an image, decoded as training images are.

    image: a path; a file that is open for reading bytes, read from its beginning where it can be; the bytes of an encoded image;
    a PIL image; or a uint8 array [H, W, 3], [H, W, 1] or [H, W]. what: its name in messages; of a path that is the path. Raises
    DataError.
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
    except Exception as error:  # a PIL image is decoded when its pixels are asked for
        raise DataError(
            f"{what} cannot be decoded ({str(error).splitlines()[0] if str(error) else error!r})"
        ) from error
    if 0 in pixels.shape:
        raise DataError(f"{what} has no pixels: its shape is {list(pixels.shape)}")
    return pixels


def is_one_image(images: Any) -> bool:
    """Whether `read_image` is meant, and not an iterable of images; files and bytes are iterable too."""
    if isinstance(images, np.ndarray):
        return images.ndim != 4
    one = str | os.PathLike | bytes | bytearray | memoryview | Image.Image
    return isinstance(images, one) or hasattr(images, "read") or not isinstance(images, Iterable)


# An address. pathlib makes one slash of two, and one letter is a drive of Windows.
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}|(data):", re.IGNORECASE)


def _read_file(image: str | os.PathLike[str], what: str) -> bytes:
    try:
        return Path(os.path.expanduser(image)).read_bytes()
    except (OSError, ValueError) as error:  # the latter of a name with a zero byte
        if address := _ADDRESS.match(str(image)):
            scheme = (address[1] or address[2]).lower()
            if scheme == "data":
                advice = "decode what follows the comma (base64.b64decode) and give the bytes"
            elif scheme == "file":
                advice = "give the path alone"
            else:
                advice = "fetch the image, and give its bytes, the open file or the path where it is saved"
            raise DataError(f"{what} is an address, not a file: {advice}") from None
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{what}: there is no such file") from None
        if isinstance(error, IsADirectoryError):
            raise DataError(f"{what} is a folder: name the images in it") from None
        raise DataError(f"{what} cannot be read ({getattr(error, 'strerror', error)})") from error


def _read_opened(file: Any, what: str) -> bytes:
    """All bytes of an open file: asked twice it answers twice, as PIL.Image.open does. A stream gives what is left of it."""
    try:
        if getattr(file, "seekable", lambda: False)():
            file.seek(0)
        content = file.read()
    except (OSError, ValueError) as error:  # the latter of a closed file
        raise DataError(f"{what}: the open file cannot be read ({first_line(error)})") from error
    if not isinstance(content, bytes | bytearray):
        raise DataError(
            f"{what}: read() gives {type(content).__name__}, not bytes: open the file in binary mode ('rb')"
        )
    return bytes(content)
