"""Tar shards (the files of WebDataset) as an image source: random access by offset, without unpacking."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from deit_jax.data.folder_index import AUTO
from deit_jax.data.shards import Shards, find_shards
from deit_jax.data.sources import DataError, Example, Split, digest
from deit_jax.data.splits import split_name
from deit_jax.data.tar_index import open_index
from deit_jax.printable import printable

_OPEN_FILES = 128  # per process; many systems allow 1,024
CLASS_FILES = ("classnames.txt", "class_names.txt", "classes.txt", "labels.txt")


class TarSource:
    """The images of tar shards, in the order of a folder of the same images: by class, folder and file name.

    A label is a `.cls` file, the field `label` or `cls` of a `.json` file, or the image's folder (see `list_tar`). Classes are
    the folders' names or the labels' texts, sorted. The names of labels that are numbers are the lines of a file next to the
    shards or one folder above (CLASS_FILES), else the numbers from 0 to the largest.

    Args:
        shards: the split's files.
        index: where the list of images is cached for the next start: see `ImageFolderSource`.

    Raises:
        DataError: a shard cannot be read, is truncated, damaged or a copy of another; there are no images; or labels are missing
            or mixed, or exceed the class names.
    """

    def __init__(self, shards: Shards, index: str = AUTO):
        self._shards, self._index = shards, open_index(shards, index)
        self.labels = self._index.labels  # int32 [N]
        names = self._index.class_names()
        notes = [*shards.notes, self._index.note(printable(shards.root))]
        if names is None:
            names, note = number_names(shards, int(self.labels.max()) + 1)
            notes.append(note)
        self.class_names = names
        self.notes = tuple(note for note in notes if note)
        self._files = _OpenFiles()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        size, path = int(self._index.sizes[index]), self._shards.path(self._index.shards[index])
        try:
            content = self._files.read(path, size, int(self._index.offsets[index]))
        except OSError as error:
            raise DataError(
                f"{self.describe(index)}: cannot be read ({error.strerror}); restore the file or start again"
            ) from error
        if len(content) < size:
            raise DataError(f"{self.describe(index)}: the file has become shorter; restore it or start again")
        return Example(content, int(self.labels[index]))

    def describe(self, index: int) -> str:
        """Returns the image's path within its shard, and the shard's path."""
        return f"{printable(self._index.name(index))} in {printable(self._shards.path(self._index.shards[index]))}"

    def file_name(self, index: int) -> str:
        """Returns the file's name without folders."""
        return self._index.name(index).rpartition("/")[2]

    def fingerprint(self) -> str:
        """Digest of the images' paths and labels."""
        return digest(self._index.names, self._index.ends, self._index.labels)


def open_tar(data: Any, split: Split, flags: str) -> TarSource:
    """Opens a split of `data.path`; see `find_shards`. flags: prefix of the fields in messages; "" for an extra set."""
    expression = data.train_split if split == "train" else data.eval_split
    name = split_name(expression) if expression else ""
    return TarSource(
        find_shards(data.path, name, ".tar", or_test=bool(flags) and split == "eval", flags=flags), data.index
    )


def number_names(shards: Shards, count: int) -> tuple[tuple[str, ...], str]:
    """Returns the names of classes whose labels are numbers below `count`, and a line about their file; see `TarSource`.

    Raises:
        DataError: the file has too few names, or a name twice.
    """
    first = os.path.dirname(shards.path(0))
    folders = dict.fromkeys((first, shards.root, os.path.join(shards.root, os.pardir)))
    for path in (os.path.join(folder, name) for folder in folders for name in CLASS_FILES):
        if not os.path.isfile(path):
            continue
        try:
            with open(path, encoding="utf-8") as file:
                names = tuple(line.strip() for line in file.read().strip().splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{printable(path)}: the class names cannot be read as UTF-8 text; correct or remove it"
            ) from error
        if len(names) < count:
            raise DataError(
                f"{printable(path)}: has {len(names):,} class names, and labels up to {count - 1:,}; correct or remove it"
            )
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(
                f"{printable(path)}: has the class name {twice!r} twice; make the names unique, or remove the file"
            )
        return names, f"class names come from {printable(path)}"
    return tuple(map(str, range(count))), ""


class _OpenFiles:
    """The files opened last, by path. Each process opens its own."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, size: int, offset: int) -> bytes:
        """Returns `size` bytes from `offset`, or less at the file's end."""
        with self._lock:
            file = self._files.get(path)
            if file is None:
                file = self._files[path] = _File(path)
                if len(self._files) > _OPEN_FILES:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(path)
        content = os.pread(file.handle, size, offset)
        while len(content) < size and (more := os.pread(file.handle, size - len(content), offset + len(content))):
            content += more
        return content

    def __reduce__(self) -> Any:
        return _OpenFiles, ()


class _File:
    """Closed when no thread reads from it any more, not when it leaves the cache: its number would become another file's."""

    def __init__(self, path: str) -> None:
        self.handle = -1
        self.handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone when Python ends
        if self.handle >= 0:
            close(self.handle)
