"""Files on disk, in a bucket or on the hub, read at any offset from any thread; what came over the network is kept on disk.

The copy consists of blocks with checksums, so any number of processes may share it, and a damaged block is read again. It never
replaces blocks: an epoch in random order reads every image once, so of data larger than the limit old blocks are as useful as new
ones.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deit_jax.cache_folder import cache_folder, why_unsafe
from deit_jax.data.sources import DataError
from deit_jax.printable import printable

# Scheme: the package that reads it.
PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "hf": "huggingface_hub"}
_READING: dict[str, dict[str, Any]] = {"hf": {"cache_type": "none"}}  # else it reads megabytes ahead of every image
_BLOCK = 256 << 10  # bytes; about two photographs


class StoredFile(Protocol):
    """A file that several threads may read."""

    size: int

    def read(self, size: int, offset: int) -> bytes:
        """Returns `size` bytes from `offset`, fewer at the file's end; raises OSError."""


def scheme_of(path: str) -> str:
    """Returns the scheme of an address, e.g. "gs"; "" for a local path."""
    scheme, separator, _ = path.partition("://")
    return scheme if separator and scheme.isalnum() else ""


@functools.cache
def filesystem(scheme: str) -> Any:
    """Returns fsspec's file system for a scheme.

    Raises:
        DataError: unknown scheme, or its package is not installed.
    """
    if scheme not in PACKAGES:
        known = ", ".join(f"{name}://" for name in PACKAGES)
        raise DataError(f"data.path: {scheme}:// cannot be read, only {known}: copy the files to a local folder")
    try:
        import fsspec

        return fsspec.filesystem(scheme)
    except ImportError as error:
        raise DataError(
            f"data.path: {scheme}:// needs the package {PACKAGES[scheme]}: pip install {PACKAGES[scheme]}"
        ) from error


def stored_bytes(path: str) -> bytes | None:
    """Returns the content of a small file, on disk or in a bucket; None if there is none. Raises OSError."""
    try:
        if scheme := scheme_of(path):
            return bytes(filesystem(scheme).cat_file(path))
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, DataError):
        raise
    except Exception as error:
        raise _as_os_error(error) from error


def stored_text(path: str) -> str | None:
    """Returns the content of a text file as `stored_bytes` does. Raises OSError, UnicodeDecodeError."""
    content = stored_bytes(path)
    return None if content is None else content.decode()


def _as_os_error(error: Exception) -> OSError:
    """Returns an error of a package, each of which has its own for networks and permissions, as one of the system."""
    return OSError(None, printable((str(error).splitlines() or [type(error).__name__])[0][:200]))


class LocalFile:
    """A file on disk. It is closed when no thread has the object any more: earlier, its number could become another file's."""

    def __init__(self, path: str) -> None:
        self._handle = -1
        self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.size = os.fstat(self._handle).st_size

    def read(self, size: int, offset: int) -> bytes:
        """Returns `size` bytes from `offset`, fewer at the file's end; raises OSError."""
        content = os.pread(self._handle, size, offset)
        while len(content) < size and (more := os.pread(self._handle, size - len(content), offset + len(content))):
            content += more
        return content

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone when Python ends
        if self._handle >= 0:
            close(self._handle)


class RemoteFile:
    """A file in a bucket.

    Args:
        address: with its scheme.
        size: in bytes.
        copy: where blocks are kept; None: nowhere.
        ahead: read so many bytes at once, and keep them in memory, for reading the file in order by one thread.
    """

    def __init__(self, address: str, size: int, copy: BlockCopy | None = None, ahead: int = 0):
        self.size, self._address, self._copy, self._ahead = size, address, copy, ahead
        self._last = (0, b"")  # offset and content of the last reading ahead

    def read(self, size: int, offset: int) -> bytes:
        """Returns `size` bytes from `offset`, fewer at the file's end; raises OSError."""
        stop = min(offset + size, self.size)
        if stop <= offset:
            return b""
        begin, content = self._last
        if not (begin <= offset and stop <= begin + len(content)):
            kept = self._kept(offset, stop)
            begin, content = (offset, kept) if kept is not None else self._fetch(offset, stop)
        return content[offset - begin : stop - begin]

    def _kept(self, start: int, stop: int) -> bytes | None:
        if self._copy is None:
            return None
        first, last = start // _BLOCK, (stop - 1) // _BLOCK
        blocks = [self._copy.get(number) for number in range(first, last + 1)]
        if any(block is None for block in blocks):
            return None
        return b"".join(block or b"" for block in blocks)[start - first * _BLOCK :][: stop - start]

    def _fetch(self, start: int, stop: int) -> tuple[int, bytes]:
        stop = min(max(stop, start + self._ahead), self.size)
        copying = self._copy is not None and self._copy.has_room()
        if copying:
            start, stop = start // _BLOCK * _BLOCK, min(-(-stop // _BLOCK) * _BLOCK, self.size)
        try:
            scheme = scheme_of(self._address)
            settings = _READING.get(scheme, {})
            content: bytes = filesystem(scheme).cat_file(self._address, start=start, end=stop, **settings)
        except OSError:
            raise
        except Exception as error:
            raise _as_os_error(error) from error
        if copying and self._copy is not None and len(content) == stop - start:
            for at in range(0, len(content), _BLOCK):
                self._copy.put((start + at) // _BLOCK, content[at : at + _BLOCK])
        if self._ahead:
            self._last = start, content
        return start, content


class BlockCopy:
    """Blocks of one remote file on disk: a sparse file, and the checksum of each block, 0 for those that are not there.

    share: of the blocks that may be kept, in [0, 1].
    """

    def __init__(self, path: Path, size: int, share: float):
        count = -(-size // _BLOCK)
        self._most = int(share * count)
        self._size = size
        _make(path.parent)
        self._handle = -1
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        self._handle = os.open(f"{path}.blocks", flags, 0o644)
        with open(os.open(f"{path}.checksums", flags, 0o644), "wb") as file:
            file.truncate(4 * count)
        self._checksums = np.memmap(f"{path}.checksums", np.uint32, "r+", shape=(count,))

    def get(self, number: int) -> bytes | None:
        """Returns a block; None if it is not there or damaged."""
        if not (checksum := int(self._checksums[number])):
            return None
        block = os.pread(self._handle, min(_BLOCK, self._size - number * _BLOCK), number * _BLOCK)
        return block if _checksum(block) == checksum else None

    def has_room(self) -> bool:
        """Whether another block may be kept."""
        return int(np.count_nonzero(self._checksums)) < self._most

    def put(self, number: int, block: bytes) -> None:
        """Keeps a block if there is room; does nothing if the disk is full."""
        if len(block) != min(_BLOCK, self._size - number * _BLOCK):
            return
        if self._checksums[number] or self.has_room():
            try:
                os.pwrite(self._handle, block, number * _BLOCK)
            except OSError:
                return
            self._checksums[number] = _checksum(block)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self._handle >= 0:
            close(self._handle)


def _checksum(block: bytes) -> int:
    return zlib.crc32(block) or 1


def copies_folder(root: str) -> Path | None:
    """Returns the folder of the copies of the files below an address; None if the user has no safe cache folder."""
    folder = cache_folder()
    if folder is None or why_unsafe(folder):
        return None
    return folder / "copies" / hashlib.sha256(root.encode()).hexdigest()[:24]


def copies_of(root: str, size: int, limit: int) -> tuple[int, str]:
    """Returns how many of `size` bytes below an address may be kept on disk, and a line about it."""
    where, gib = printable(root), f"{size / 2**30:,.1f} GiB"
    folder = copies_folder(root) if limit else None
    if folder is None:
        return (
            0,
            f"{where}: {gib} are read over the network in every epoch; no copies are kept on disk (data.copies_gib)",
        )
    copied = min(limit, size)
    make_room(folder, limit, copied)
    with contextlib.suppress(OSError):
        copied = min(copied, _used(folder) + shutil.disk_usage(folder).free // 2)
    part = "all" if copied == size else f"{copied / 2**30:,.1f} GiB"
    return (
        copied,
        f"{where}: read over the network; {part} of {gib} are kept in {printable(folder.parent)} (data.copies_gib)",
    )


def make_room(folder: Path, limit: int, needed: int) -> None:
    """Removes copies of other addresses, the longest unused first, until `needed` bytes more fit into `limit`.

    Processes that have them open read on.
    """
    try:
        _make(folder)
        os.utime(folder)
        others = sorted(
            (each for each in folder.parent.iterdir() if each != folder), key=lambda each: each.stat().st_mtime
        )
        used = {other: _used(other) for other in others}
    except OSError:
        return
    for other in others:
        if sum(used.values()) + needed <= limit:
            return
        shutil.rmtree(other, ignore_errors=True)
        del used[other]


def _make(folder: Path) -> None:
    """Creates a folder of `copies_folder` and those above it, writable only by their owner, with any umask."""
    for each in (folder.parent.parent, folder.parent, folder):
        each.mkdir(mode=0o755, parents=True, exist_ok=True)


def _used(folder: Path) -> int:
    """Returns the bytes on disk of a folder's files."""
    return sum(file.stat().st_blocks * 512 for file in folder.iterdir())


def as_python_file(file: StoredFile) -> io.RawIOBase:
    """Returns a file object for one thread."""
    return _PythonFile(file)


class _PythonFile(io.RawIOBase):
    def __init__(self, file: StoredFile):
        self._file, self._position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        size = self._file.size - self._position if size is None or size < 0 else size
        content = self._file.read(size, self._position)
        self._position += len(content)
        return content
