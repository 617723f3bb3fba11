"""From an encoded image to uint8 pixels of the model's size: decoding and the crops of training and evaluation.

JPEG goes through simplejpeg and resizing through `resizing.py`, both to the same pixels as Pillow, faster; everything else goes
through Pillow. The flip, RandAugment and all later steps run on the accelerator. docs/data.md says what becomes of each kind of
file.
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

MAX_PIXELS = 178_956_970  # of one image: where Pillow stops, twice its Image.MAX_IMAGE_PIXELS
_CROP_ATTEMPTS = 10


class Crop(Protocol):
    """What the loader asks of a training crop: to pickle, to know its size, and to depend on nothing but its arguments."""

    @property
    def size(self) -> int:
        """Pixels, height and width of the result."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Crops uint8 `[H, W, 3]` to uint8 `[size, size, 3]`."""


def decode(image: bytes | np.ndarray) -> np.ndarray:
    """Pixels of an encoded image, or of an array, as RGB.

    Grey becomes three equal channels, CMYK and palettes are converted as Pillow does, transparency is dropped, 16-bit greys are
    scaled to 8 bits, of an animation the first frame is taken, and an EXIF orientation is ignored, as torchvision's loader does.
    What Pillow warns of is not shown.

    Args:
        image: an encoded file (JPEG, PNG and whatever else Pillow reads), or uint8 `[H, W]`, `[H, W, 1]` or `[H, W, 3]`.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        DataError: the bytes are no image that can be decoded, one of more than MAX_PIXELS or one of 32-bit or floating-point
            pixels, or the array is of another shape or dtype.
    """
    if isinstance(image, np.ndarray):
        return _as_rgb(image)
    try:
        if image[:2] == b"\xff\xd8":
            try:
                height, width, colors, _ = simplejpeg.decode_jpeg_header(image)
                # simplejpeg rounds CMYK otherwise than Pillow.
                if height * width <= MAX_PIXELS and colors in ("YCbCr", "RGB", "Gray"):
                    return simplejpeg.decode_jpeg(image, colorspace="RGB")
            except ValueError:
                pass  # perhaps a harmless irregularity that simplejpeg is strict about: Pillow decides
        with muted(), Image.open(io.BytesIO(image)) as opened:
            return rgb(opened)
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more for damaged files
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
        return "a damaged TIFF, or of pixels that Pillow does not read: save it with 8 bits a channel"
    brand = image[8:12] if image[4:8] == b"ftyp" else b""  # ISO 14496-12
    if brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"):
        return (
            "HEIC, whatever the file's ending, which Pillow reads only with the plugin pillow-heif; convert it to JPEG"
        )
    if brand in (b"avif", b"avis"):
        return f"AVIF, which this Pillow, {PIL.__version__}, does not read; install 11.3 or newer"
    return "no image format that Pillow knows"


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


def _with_shorter_side(height: int, width: int, size: int) -> tuple[int, int]:
    # torchvision's rule: the longer side is truncated, not rounded.
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def random_resized_crop_box(
    height: int, width: int, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Draws the box of a random resized crop as timm 0.3.2 does.

    Ten tries: the area is a uniform share `scale` of the image's, the aspect ratio (width / height) is log-uniform in `ratio`,
    and a box that fits is placed uniformly. If none fits, the largest centred box whose aspect ratio is within `ratio`.
    """
    area = height * width
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_CROP_ATTEMPTS):
        target = rng.uniform(scale[0], scale[1]) * area
        aspect = math.exp(rng.uniform(log_ratio[0], log_ratio[1]))
        w = round(math.sqrt(target * aspect))
        h = round(math.sqrt(target / aspect))
        # timm accepts an empty box of an image of one or two pixels, and then cannot resize it.
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


def resized_crop(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Cuts `box` out of uint8 `[H, W, 3]` and resizes it (antialiased bicubic) to uint8 `[size, size, 3]`."""
    return resize(image, size, size, box)


def padded_crop(image: np.ndarray, rng: np.random.Generator, size: int, padding: int) -> np.ndarray:
    """A random `size` x `size` window of the image inside a black frame of `padding` pixels.

    The reference's training crop for images of at most 32 pixels. An image whose shorter side is not `size` is resized first.

    Args:
        image: uint8 `[H, W, 3]`.
        rng: draws the vertical offset, then the horizontal one.
        size: pixels.
        padding: pixels on each side.

    Returns:
        uint8 `[size, size, 3]`.
    """
    height, width = _with_shorter_side(image.shape[0], image.shape[1], size)  # an image of that size is not resized
    # Offsets of the window in the image; negative in the frame. Copying the overlap is cheaper than padding the image.
    top = int(rng.integers(0, height - size + 2 * padding, endpoint=True)) - padding
    left = int(rng.integers(0, width - size + 2 * padding, endpoint=True)) - padding
    rows = min(top + size, height) - max(top, 0)
    columns = min(left + size, width) - max(left, 0)
    window = np.zeros((size, size, 3), np.uint8)
    if rows > 0 and columns > 0:
        overlap = resize(image, height, width, window=Box(max(top, 0), max(left, 0), rows, columns))
        window[max(-top, 0) :, max(-left, 0) :][:rows, :columns] = overlap
    return window


def center_crop_resize(image: np.ndarray, size: int, crop_ratio: float) -> np.ndarray:
    """The evaluation crop: shorter side to `int(size / crop_ratio)` (antialiased bicubic), then the centre.

    Args:
        image: uint8 `[H, W, 3]`.
        size: pixels of the result.
        crop_ratio: share of the resized shorter side that is kept, in (0, 1].

    Returns:
        uint8 `[size, size, 3]`.
    """
    height, width = _with_shorter_side(image.shape[0], image.shape[1], int(size / crop_ratio))
    top, left = round((height - size) / 2), round((width - size) / 2)  # torchvision rounds halves to even too
    return resize(image, height, width, window=Box(top, left, size, size))


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"a crop of {size} pixels: give 1 or more")


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """`random_resized_crop_box` and `resized_crop`; the reference's training crop above 32 pixels."""

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not (0 < self.scale[0] <= self.scale[1] <= 1):
            raise ValueError(f"data.crop_scale={self.scale}: give two shares of the area, 0 < smaller <= larger <= 1")
        if not (0 < self.ratio[0] <= self.ratio[1]):
            raise ValueError(f"data.crop_ratio={self.ratio}: give two aspect ratios, 0 < smaller <= larger")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Crops uint8 `[H, W, 3]` to uint8 `[size, size, 3]`."""
        box = random_resized_crop_box(image.shape[0], image.shape[1], rng, self.scale, self.ratio)
        return resized_crop(image, box, self.size)


@dataclasses.dataclass(frozen=True)
class PaddedCrop:
    """`padded_crop`; the reference's training crop up to 32 pixels."""

    size: int
    padding: int = 4

    def __post_init__(self) -> None:
        _check_size(self.size)
        if self.padding < 0:
            raise ValueError(f"data.crop_padding={self.padding}: give 0 or more pixels")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Crops uint8 `[H, W, 3]` to uint8 `[size, size, 3]`."""
        return padded_crop(image, rng, self.size, self.padding)


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """`center_crop_resize`; the reference's evaluation crop."""

    size: int
    crop_ratio: float = 0.875

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(f"evaluation.crop_ratio={self.crop_ratio}: give a share of the side in (0, 1]")

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Crops uint8 `[H, W, 3]` to uint8 `[size, size, 3]`; draws nothing."""
        return center_crop_resize(image, self.size, self.crop_ratio)


@dataclasses.dataclass(frozen=True)
class Squash:
    """The whole image resized to a square, its aspect ratio lost."""

    size: int
    crop_ratio: float = dataclasses.field(default=1.0, init=False)

    def __post_init__(self) -> None:
        _check_size(self.size)

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Resizes uint8 `[H, W, 3]` to uint8 `[size, size, 3]`; draws nothing."""
        return resize(image, self.size, self.size)


EvaluationCrop = CenterCrop | Squash

_LARGE = 384  # pixels from which timm and mmpretrain evaluate DeiT differently


def evaluation_crop(evaluation: Any, image_size: int) -> EvaluationCrop:
    """The evaluation crop that a config's `evaluation` section names, to `image_size` pixels.

    `evaluation.protocol`: "deit" keeps `evaluation.crop_ratio` of the resized side (released code: 0.875, so 224 of 256 and 384
    of 438); "timm" is that of timm's pretrained DeiT (0.9, so 224 of 248; from 384 pixels on 1.0); "mmpretrain" that of its DeiT
    (224 of 256; from 384 pixels on the whole image squashed to a square). All bicubic and antialiased.

    Raises:
        ValueError: another protocol, or an impossible size or ratio.
    """
    if evaluation.protocol == "deit":
        return CenterCrop(image_size, evaluation.crop_ratio)
    if evaluation.protocol == "timm":
        return CenterCrop(image_size, 1.0 if image_size >= _LARGE else 0.9)
    if evaluation.protocol == "mmpretrain":
        return Squash(image_size) if image_size >= _LARGE else CenterCrop(image_size, 0.875)
    raise ValueError(f"evaluation.protocol={evaluation.protocol!r} is none of deit, timm, mmpretrain")
