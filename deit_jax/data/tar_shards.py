"""Tar shards (the files of WebDataset) as an image source: random access by offset, without unpacking."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import Any

from deit_jax.data.folder_index import AUTO
from deit_jax.data.other_layouts import MAIN
from deit_jax.data.shards import Shards, split_shards
from deit_jax.data.sources import DataError, Example, Split, digest
from deit_jax.data.stored_files import StoredFile, stored_text
from deit_jax.data.tar_index import Lister, open_index
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
        lister, labelled: see `open_index`.

    Raises:
        DataError: a shard cannot be read, is truncated, damaged or a copy of another; there are no images; or labels are missing
            or mixed, or exceed the class names.
    """

    def __init__(
        self, shards: Shards, index: str = AUTO, *, lister: Lister | None = None, labelled: bool = True
    ) -> None:
        self._shards, self._index = shards, open_index(shards, index, lister=lister, labelled=labelled)
        self.labels = self._index.labels  # int32 [N]
        names = self._index.class_names()
        notes = [*shards.notes, self._index.note(printable(shards.root))]
        if names is None:
            names, note = number_names(shards, int(self.labels.max()) + 1)
            notes.append(note)
        self.class_names = names
        self.notes = tuple(note for note in notes if note)
        self._files = OpenFiles(shards)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        size = int(self._index.sizes[index])
        try:
            content = self._files[int(self._index.shards[index])].read(size, int(self._index.offsets[index]))
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

    def relative_path(self, index: int) -> str:
        """Returns the image's path within its shard, without folders that all images share."""
        return self._index.name(index)

    def file_name(self, index: int) -> str:
        """Returns the file's name without folders."""
        return self._index.name(index).rpartition("/")[2]

    def fingerprint(self) -> str:
        """Digest of the images' paths and labels."""
        return digest(self._index.names, self._index.ends, self._index.labels)


def open_tar(data: Any, split: Split, flags: str) -> TarSource:
    """Opens a split of `data.path`; see `split_shards`."""
    return TarSource(split_shards(data, split, ".tar", flags), data.index)


def open_unlabelled_tar(data: Any) -> TarSource:
    """Opens the split of unlabelled images of `data.path`."""
    return TarSource(split_shards(data, "train", ".tar", MAIN), data.index, labelled=False)


def number_names(shards: Shards, count: int) -> tuple[tuple[str, ...], str]:
    """Returns the names of classes whose labels are numbers below `count`, and a line about their file; see `TarSource`.

    Raises:
        DataError: the file has too few names, or a name twice.
    """
    above = os.path.dirname(shards.root if shards.remote else os.path.abspath(shards.root))
    folders = dict.fromkeys((os.path.dirname(shards.path(0)), shards.root, above))
    for path in (os.path.join(folder, name) for folder in folders for name in CLASS_FILES):
        try:
            text = stored_text(path)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{printable(path)}: the class names cannot be read as UTF-8 text; correct or remove it"
            ) from error
        if text is None:
            continue
        names = tuple(line.strip() for line in text.strip().splitlines())
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


class OpenFiles:
    """The shards opened last. Each process opens its own."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._files: OrderedDict[int, StoredFile] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> StoredFile:
        with self._lock:
            file = self._files.get(number)
            if file is None:
                file = self._files[number] = self._shards.stored(number)
                if len(self._files) > _OPEN_FILES:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(number)
            return file

    def __reduce__(self) -> Any:
        return OpenFiles, (self._shards,)
