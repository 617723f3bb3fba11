"""Images as people hand them over: paths, PIL images, arrays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deit_jax.data.decoding import decode
from deit_jax.data.pillow_images import muted, rgb
from deit_jax.data.sources import DataError
from deit_jax.printable import printable


def read_image(image: Any, what: str = "the image") -> np.ndarray:
    """uint8[H, W, 3] from a path, a PIL image or a uint8 array [H, W, 3], [H, W, 1] or [H, W], decoded as training images are.

    what: the image's name in messages; of a path that is the path. Raises DataError.
    """
    if isinstance(image, str | os.PathLike):
        what = printable(image)
        image = _read_file(Path(os.path.expanduser(image)))
    elif not isinstance(image, Image.Image | np.ndarray):
        raise DataError(
            f"{what} is of type {type(image).__name__}: give a path, a PIL image or a uint8 array [height, width, 3]"
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


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{printable(path)}: there is no such file") from None
    except IsADirectoryError:
        raise DataError(f"{printable(path)} is a folder: name the images in it") from None
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read ({error.strerror})") from error
