"""Decoding of images and the crops of training and evaluation: from encoded bytes to uint8 pixels of the model's size.

simplejpeg decodes JPEG and `resizing.py` resizes, both with the same pixels as Pillow, but faster; Pillow does the rest. The
flip, RandAugment and all later steps run on the accelerator. docs/data.md lists how each kind of file is handled.
"""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any, Protocol

import numpy as np
import PIL
import simplejpeg
from PIL import Image

from deit_jax.data.pillow_images import muted, rgb
from deit_jax.data.resizing import Box, resize
from deit_jax.data.sources import TO_UINT8, DataError

MAX_PIXELS = 178_956_970  # per image: Pillow's limit, twice its Image.MAX_IMAGE_PIXELS
_CROP_ATTEMPTS = 10


class Crop(Protocol):
    """A training crop for the loader: it must pickle, have a size, and depend only on its arguments."""

    @property
    def size(self) -> int:
        """Height and width of the result in pixels."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray | None = None) -> np.ndarray:
        """Crops uint8 `[H, W, 3]` to uint8 `[size, size, 3]`, which is `out` if given."""


def decode(image: bytes | np.ndarray) -> np.ndarray:
    """Converts an image file in any format of Pillow, or uint8 `[H, W]`, `[H, W, 1]` or `[H, W, 3]`, to RGB, uint8 `[H, W, 3]`.

    Gray becomes three equal channels, CMYK and palettes are converted as in Pillow, transparency is dropped, 16-bit grays are
    scaled to 8 bits, animations yield their first frame, and the EXIF orientation is ignored, as in torchvision's loader.
    Pillow's warnings are suppressed.

    Raises DataError if the image cannot be decoded, has more than MAX_PIXELS or 32-bit or floating-point pixels, or the array
    has another shape or dtype.
    """
    if isinstance(image, np.ndarray):
        return _as_rgb(image)
    try:
        if image[:2] == b"\xff\xd8":
            try:
                height, width, colors, _ = simplejpeg.decode_jpeg_header(image)
                # simplejpeg rounds CMYK differently from Pillow.
                if height * width <= MAX_PIXELS and colors in ("YCbCr", "RGB", "Gray"):
                    return simplejpeg.decode_jpeg(image, colorspace="RGB")
            except ValueError:
                pass  # perhaps a harmless irregularity that only simplejpeg rejects: Pillow decides
        with muted(), Image.open(io.BytesIO(image)) as opened:
            return rgb(opened)
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and others
        raise DataError(
            f"an image of {len(image)} bytes cannot be decoded ({_reason(image, error)}); replace or remove the image"
        ) from error


def _reason(image: bytes, error: Exception) -> str:
    if not image:
        return "an empty file"
    if isinstance(error, Image.UnidentifiedImageError):
        return _unknown_format(image)
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS:,} pixels"
    return str(error).split("\n")[0] or type(error).__name__


def _unknown_format(image: bytes) -> str:
    if image[:4] in (b"II*\0", b"MM\0*"):
        return "a damaged TIFF, or one with pixels that Pillow does not read: save it with 8 bits per channel"
    brand = image[8:12] if image[4:8] == b"ftyp" else b""  # ISO 14496-12
    if brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"):
        return (
            "HEIC, regardless of the extension, which Pillow reads only with the plugin pillow-heif; convert it to JPEG"
        )
    if brand in (b"avif", b"avis"):
        return f"AVIF, which this Pillow, {PIL.__version__}, does not read; install 11.3 or newer"
    return "not an image format that Pillow knows"


def _as_rgb(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        if image.ndim == 2:
            image = image[:, :, None]
        if image.ndim == 3 and image.shape[2] == 1:
            return np.repeat(image, 3, axis=2)
        if image.ndim == 3 and image.shape[2] == 3:
            return image
    advice = "" if image.dtype == np.uint8 else f": {TO_UINT8}"
    raise DataError(
        f"an image array is {image.dtype}{list(image.shape)}; give uint8 [H, W], [H, W, 1] or [H, W, 3]{advice}"
    )


def with_shorter_side(height: int, width: int, size: int) -> tuple[int, int]:
    """Returns height and width of an image whose shorter side becomes `size`, the longer one truncated as in torchvision."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def random_resized_crop_box(
    height: int, width: int, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Draws the box of a random resized crop as timm 0.3.2.

    In up to ten attempts it draws the area, a uniform share in `scale` of the image's, and the aspect ratio (width / height),
    log-uniform in `ratio`, and places the first box that fits uniformly. If none fits, it returns the largest centered box
    with an aspect ratio within `ratio`.
    """
    area = height * width
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_CROP_ATTEMPTS):
        target = rng.uniform(scale[0], scale[1]) * area
        aspect = math.exp(rng.uniform(log_ratio[0], log_ratio[1]))
        w = round(math.sqrt(target * aspect))
        h = round(math.sqrt(target / aspect))
        # timm accepts an empty box in an image of one or two pixels, then fails to resize it.
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h, endpoint=True))
            left = int(rng.integers(0, width - w, endpoint=True))
            return Box(top, left, h, w)
    w, h = width, height
    if width / height < min(ratio):
        h = round(width / min(ratio))
    elif width / height > max(ratio):
        w = round(height * max(ratio))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"a crop of {size} pixels: give 1 or more")


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """Cuts out and resizes (antialiased bicubic) a `random_resized_crop_box`; the reference's training crop above 32 pixels."""

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not (0 < self.scale[0] <= self.scale[1] <= 1):
            raise ValueError(f"data.crop_scale={self.scale}: give two shares of the area, 0 < smaller <= larger <= 1")
        if not (0 < self.ratio[0] <= self.ratio[1]):
            raise ValueError(f"data.crop_ratio={self.ratio}: give two aspect ratios, 0 < smaller <= larger")

    def __call__(self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray | None = None) -> np.ndarray:
        """Crops uint8 `[H, W, 3]` to uint8 `[size, size, 3]`, which is `out` if given."""
        box = random_resized_crop_box(image.shape[0], image.shape[1], rng, self.scale, self.ratio)
        return resize(image, self.size, self.size, box, out=out)


@dataclasses.dataclass(frozen=True)
class PaddedCrop:
    """A random window of the image inside a black frame of `padding` pixels; the reference's training crop up to 32 pixels.

    An image whose shorter side is not `size` is resized first.
    """

    size: int
    padding: int = 4

    def __post_init__(self) -> None:
        _check_size(self.size)
        if self.padding < 0:
            raise ValueError(f"data.crop_padding={self.padding}: give 0 or more pixels")

    def __call__(self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray | None = None) -> np.ndarray:
        """Crops uint8 `[H, W, 3]` to uint8 `[size, size, 3]`, which is `out` if given.

        Draws the vertical offset, then the horizontal one.
        """
        size, padding = self.size, self.padding
        height, width = with_shorter_side(image.shape[0], image.shape[1], size)
        # Offsets of the window in the image; negative in the frame. Copying the overlap is cheaper than padding the image.
        top = int(rng.integers(0, height - size + 2 * padding, endpoint=True)) - padding
        left = int(rng.integers(0, width - size + 2 * padding, endpoint=True)) - padding
        rows = min(top + size, height) - max(top, 0)
        columns = min(left + size, width) - max(left, 0)
        window = np.empty((size, size, 3), np.uint8) if out is None else out
        window[:] = 0
        if rows > 0 and columns > 0:
            overlap = resize(image, height, width, window=Box(max(top, 0), max(left, 0), rows, columns))
            window[max(-top, 0) :, max(-left, 0) :][:rows, :columns] = overlap
        return window


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """Resizes the shorter side to `int(size / crop_ratio)` and crops the center; the reference's evaluation crop.

    crop_ratio: share of the resized shorter side that is kept, in (0, 1].
    """

    size: int
    crop_ratio: float = 0.875

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(f"evaluation.crop_ratio={self.crop_ratio}: give a share of the side in (0, 1]")

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Crops uint8 `[H, W, 3]` to uint8 `[size, size, 3]`, which is `out` if given; draws nothing."""
        height, width = with_shorter_side(image.shape[0], image.shape[1], int(self.size / self.crop_ratio))
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)  # halves to even, as in torchvision
        return resize(image, height, width, window=Box(top, left, self.size, self.size), out=out)


@dataclasses.dataclass(frozen=True)
class Squash:
    """Resizes the whole image to a square, ignoring its aspect ratio."""

    size: int
    crop_ratio: float = dataclasses.field(default=1.0, init=False)

    def __post_init__(self) -> None:
        _check_size(self.size)

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Resizes uint8 `[H, W, 3]` to uint8 `[size, size, 3]`, which is `out` if given; draws nothing."""
        return resize(image, self.size, self.size, out=out)


EvaluationCrop = CenterCrop | Squash

_LARGE = 384  # from this size on, timm and mmpretrain evaluate DeiT differently


def evaluation_crop(evaluation: Any, image_size: int) -> EvaluationCrop:
    """Returns the evaluation crop to `image_size` pixels for a config's `evaluation` section.

    `evaluation.protocol`: "deit" keeps `evaluation.crop_ratio` of the resized side (released code: 0.875, so 224 of 256 and 384
    of 438). "timm" is the protocol of timm's pretrained DeiT (0.9, so 224 of 248; from 384 pixels on 1.0). "mmpretrain" is that
    of mmpretrain's DeiT (224 of 256; from 384 pixels on the whole image resized to a square). All are bicubic and antialiased.

    Raises:
        ValueError: unknown protocol, or invalid size or ratio.
    """
    if evaluation.protocol == "deit":
        return CenterCrop(image_size, evaluation.crop_ratio)
    if evaluation.protocol == "timm":
        return CenterCrop(image_size, 1.0 if image_size >= _LARGE else 0.9)
    if evaluation.protocol == "mmpretrain":
        return Squash(image_size) if image_size >= _LARGE else CenterCrop(image_size, 0.875)
    raise ValueError(f"evaluation.protocol={evaluation.protocol!r} is not one of deit, timm, mmpretrain")
