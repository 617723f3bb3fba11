"""array_record files whose images can be read by offset, from any storage and without the package that writes them.

A record is a tf.train.Example, which TFDS, Grain and tf.data read, alone in an uncompressed chunk, and ends with the image. So
an image is a stretch of the file, except for the header of 24 bytes at the start of every block of 64 KiB. Offsets here do not
count these headers.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from deit_jax.data.stored_files import StoredFile

_BLOCK, _BLOCK_HEADER = 1 << 16, 24
_USABLE = _BLOCK - _BLOCK_HEADER
# Hash of the header, bytes of data, hash of the data, type and number of records, decoded bytes.
_CHUNK_HEADER = struct.Struct("<5Q")
_ONE_RECORD = ord("r") | 1 << 8
_OPTIONS = "group_size:1,uncompressed"


def open_writer(path: str) -> Any:
    """Returns array_record's writer, with the methods `write(bytes)` and `close()`."""
    from array_record.python.array_record_module import ArrayRecordWriter  # imported here because readers do without

    return ArrayRecordWriter(path, _OPTIONS)


def encode_example(image: bytes, label: int, name: bytes) -> bytes:
    """Returns a record: a tf.train.Example with the features `file_name`, `label` and, at its end, `image`."""
    features = _feature(b"file_name", 1, _field(1, name)) + _feature(b"label", 3, _field(1, _varint(label)))
    return _field(1, features + _feature(b"image", 1, _field(1, image)))


def _feature(name: bytes, kind: int, values: bytes) -> bytes:
    """An entry of the map from names to features; kind: 1 for bytes, 3 for integers."""
    return _field(1, _field(1, name) + _field(2, _field(kind, values)))


def _field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer whose type has a length."""
    return bytes((number << 3 | 2,)) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes((*found, number))


def locate_images(file: StoredFile, sizes: Sequence[int]) -> np.ndarray:
    """Returns the offset of each image in a file of `encode_example` records with images of these sizes: int64 `[N]`.

    Raises:
        ValueError: the file has other records.
    """
    offsets = np.empty(len(sizes), np.int64)
    position = _CHUNK_HEADER.size  # after the file's signature, a chunk without data
    for number, size in enumerate(sizes):
        header = read_span(file, position, _CHUNK_HEADER.size)
        if len(header) < _CHUNK_HEADER.size:
            raise ValueError(f"ends after {number} records")
        _, data, _, kind, _ = _CHUNK_HEADER.unpack(header)
        if kind != _ONE_RECORD or data < size:
            raise ValueError(f"record {number} is not as it was written")
        position += _CHUNK_HEADER.size + data
        offsets[number] = position - size
    return offsets


def read_span(file: StoredFile, offset: int, size: int) -> bytes:
    """Returns `size` bytes from an offset, fewer at the file's end; raises OSError."""
    if size <= 0:
        return b""
    first, end = _in_file(offset), _in_file(offset + size - 1) + 1
    content = file.read(end - first, first)
    if end - first == size:
        return content
    parts, start, view = [], first, memoryview(content)  # which copies nothing
    while start < end:
        edge = (start // _BLOCK + 1) * _BLOCK
        parts.append(view[start - first : edge - first])
        start = edge + _BLOCK_HEADER
    return b"".join(parts)


def _in_file(offset: int) -> int:
    return offset + _BLOCK_HEADER * (offset // _USABLE + 1)
