"""Writes one array_record shard: reads images of a source, resizes those that are larger than wanted, and verifies the file."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from deit_jax import console
from deit_jax.data.array_records import encode_example, locate_images, open_writer, read_span
from deit_jax.data.decoding import decode, with_shorter_side
from deit_jax.data.output_folder import digest_of
from deit_jax.data.pillow_images import muted
from deit_jax.data.prepared import ImageIndex
from deit_jax.data.resizing import resize
from deit_jax.data.sources import DataError, ImageSource, UnusableError, name_of
from deit_jax.data.stored_files import LocalFile

_AHEAD = 4  # images read ahead, per thread


@dataclasses.dataclass(frozen=True)
class Settings:
    """How images are written.

    shortest_side: in pixels, of images whose shorter side is longer; None: all keep their bytes. quality: of the JPEG files that
    resized images become. shard_images: images per shard.
    """

    shortest_side: int | None = None
    quality: int = 95
    shard_images: int = 2000


@dataclasses.dataclass(frozen=True)
class Part:
    """What is recorded about a written shard."""

    index: ImageIndex
    facts: dict[str, Any]  # "images", "bytes", "digest", "resized", "left_out"

    def to_bytes(self) -> bytes:
        """Returns the content of a file that `from_bytes` reads."""
        return self.index.to_bytes(facts=np.frombuffer(json.dumps(self.facts).encode(), np.uint8))

    @classmethod
    def from_bytes(cls, content: bytes | None) -> Part | None:
        """Reads a part; None if there is none, or it is damaged: its shard is written again."""
        try:
            with np.load(io.BytesIO(content or b""), allow_pickle=False) as arrays:
                return cls(ImageIndex.from_arrays(arrays), json.loads(arrays["facts"].tobytes()))
        except Exception:  # from NumPy, zipfile, zlib or json
            return None


@dataclasses.dataclass(frozen=True)
class _Image:
    content: bytes
    label: int
    name: bytes
    resized: bool


def write_shard(
    source: ImageSource, indices: range, path: str, settings: Settings, *, leave_out: bool, num_threads: int
) -> Part:
    """Writes images of a source as a shard, reads it again and compares it, and returns its part.

    leave_out: leave images out that cannot be read. num_threads: to read and resize images.

    Raises DataError if an image cannot be read, OSError or array_record's RuntimeError if the file cannot be written.
    """
    bad = list[str]()

    def read(index: int) -> _Image | None:
        try:
            return _read(source, index, settings)
        except UnusableError as error:
            if not leave_out:
                raise
            bad.append(str(error))
            return None

    names, labels, sizes, checksums, resized = list[bytes](), list[int](), list[int](), list[int](), 0
    writer = open_writer(path)
    try:
        for image in _in_threads(read, indices, num_threads):
            if image is None:
                continue
            writer.write(encode_example(image.content, image.label, image.name))
            names.append(image.name)
            labels.append(image.label)
            sizes.append(len(image.content))
            checksums.append(zlib.crc32(image.content))
            resized += image.resized
    finally:
        writer.close()
    for line in bad:
        console.warn(f"left out: {line}")
    file = LocalFile(path)
    try:
        offsets = locate_images(file, sizes)
    except ValueError as error:
        raise OSError(None, f"reading it again, it {error}") from error
    for offset, size, checksum in zip(offsets.tolist(), sizes, checksums, strict=True):
        if zlib.crc32(read_span(file, offset, size)) != checksum:
            raise OSError(None, "what was read again differs from what was written")
    index = ImageIndex(
        np.frombuffer(b"".join(names), np.uint8),
        np.cumsum([len(name) for name in names], dtype=np.int64),
        np.asarray(labels, np.int32),
        offsets,
        np.asarray(sizes, np.int64),
        np.asarray(checksums, np.uint32),
    )
    with open(path, "rb") as content:
        facts = {"images": len(names), "bytes": file.size, "digest": digest_of(content)}
    return Part(index, {**facts, "resized": resized, "left_out": len(bad)})


def _in_threads(read: Callable[[int], Any], indices: range, count: int) -> Iterator[Any]:
    """Yields `read` of each index in order, read by threads, not far ahead."""
    if count < 2:
        yield from map(read, indices)
        return
    waiting = deque[Future[Any]]()
    with ThreadPoolExecutor(count) as pool:
        try:
            for index in indices:
                waiting.append(pool.submit(read, index))
                if len(waiting) > _AHEAD * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read(source: ImageSource, index: int, settings: Settings) -> _Image:
    image, label = source[index]
    if not isinstance(label, int) or not 0 <= label < len(source.class_names):
        raise UnusableError(
            f"{source.describe(index)}: label {label} is outside the {len(source.class_names)} classes; correct it"
        )
    try:
        content, resized = _as_file(image, settings)
    except DataError as error:
        raise UnusableError(f"{source.describe(index)}: {error}") from error
    return _Image(content, label, os.fsencode(name_of(source, index) or str(index)), resized)


def _as_file(image: bytes | np.ndarray, settings: Settings) -> tuple[bytes, bool]:
    """Returns an image file, and whether the image was resized. Raises DataError if it must be decoded and cannot be."""
    side = settings.shortest_side
    if side is not None and min(_size(image)) > side:
        pixels = decode(image)
        height, width = with_shorter_side(pixels.shape[0], pixels.shape[1], side)
        pixels = np.ascontiguousarray(resize(pixels, height, width))
        return simplejpeg.encode_jpeg(pixels, settings.quality, "RGB", "444"), True
    if isinstance(image, bytes):
        return image, False
    file = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image).save(file, "PNG")
    return file.getvalue(), False


def _size(image: bytes | np.ndarray) -> tuple[int, int]:
    """Returns height and width."""
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    try:
        if image[:2] == b"\xff\xd8":
            return simplejpeg.decode_jpeg_header(image)[:2]
        with muted(), Image.open(io.BytesIO(image)) as opened:
            return opened.height, opened.width
    except Exception:  # `decode` reports what is wrong, or reads what only the header's reader rejects
        return decode(image).shape[:2]
