"""Lists the images of class folders: which folders are classes, which files are images, where links lead."""

from __future__ import annotations

import dataclasses
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from deit_jax.data.file_names import (
    BROKEN_LINK,
    LINK_ABOVE,
    LINK_AGAIN,
    NOT_A_FILE,
    is_index,
    skipped_file,
    skipped_folder,
)
from deit_jax.data.sources import DataError
from deit_jax.printable import printable

_LISTING_THREADS = 16  # a network file system handles many concurrent requests as fast as one

FileId = tuple[int, int]  # device and inode


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images of class folders, in order, and the state of their folders.

    Names are one array of bytes instead of a million strings, so that it loads fast and is small to send to a worker.
    """

    names: np.ndarray  # uint8, concatenated paths relative to the root
    ends: np.ndarray  # int64[N]: end of each path
    labels: np.ndarray  # int32[N]
    folders: np.ndarray  # uint8, folders below the root, relative to it, each terminated by a zero
    modified: np.ndarray  # int64: their modification times, ns
    skipped: np.ndarray  # uint8, JSON: number of skipped files and folders by kind (file_names.py)
    repeated: (
        np.ndarray
    )  # int64[2]: images that are links to another image's file, and how many of these are in another class

    def file(self, index: int) -> str:
        """Returns the path of an image, relative to the root."""
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.names[start : self.ends[index]].tobytes())

    def is_current(self, root: str) -> bool:
        """Whether no folder has changed since the listing."""
        folders = self.folders.tobytes().split(b"\0")[:-1]
        return len(folders) == len(self.modified) and all(
            os.stat(os.path.join(os.fsencode(root), folder)).st_mtime_ns == modified
            for folder, modified in zip(folders, self.modified.tolist(), strict=True)
        )

    def classes(self) -> tuple[str, ...]:
        """Returns the names of the class folders."""
        return tuple(os.fsdecode(folder) for folder in self.folders.tobytes().split(b"\0")[:-1] if b"/" not in folder)

    def skipped_kinds(self) -> Counter[str]:
        """Returns the number of skipped files and folders by kind."""
        return Counter(json.loads(self.skipped.tobytes()))


@dataclasses.dataclass
class _Folder:
    path: str  # relative to the root
    modified: int
    identity: FileId
    linked: bool  # reached through a link
    images: list[str] = dataclasses.field(default_factory=list)
    inodes: array[int] = dataclasses.field(default_factory=lambda: array("Q"))  # those of images that are not links


@dataclasses.dataclass
class ClassListing:
    """The contents of one class folder."""

    folders: list[_Folder] = dataclasses.field(default_factory=list)
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)
    links: list[FileId] = dataclasses.field(default_factory=list)  # targets of the images that are links

    def files(self) -> list[str]:
        """Returns the images' paths, relative to the root."""
        return [f"{folder.path}/{name}" for folder in self.folders for name in folder.images]


def class_folders(root: str | os.PathLike[str]) -> tuple[str, ...]:
    """Returns the class folders in `root`, sorted by name, or numerically if all are numbers. Hidden folders are not classes."""
    return scan_root(root)[0]


def scan_root(root: str | os.PathLike[str]) -> tuple[tuple[str, ...], Counter[str], list[str]]:
    """Returns the contents of `root`: the class folders, the numbers of skipped entries by kind, and images outside the folders.

    Raises:
        DataError: `root` is unreadable.
    """
    names, images, skipped = list[str](), list[str](), Counter[str]()
    above: frozenset[FileId] | None = None
    for entry in _entries(os.fspath(root)):
        kind, is_folder = _kind(entry)
        if kind is None and is_folder and entry.is_symlink():
            above = above or identities_above(os.fspath(root))
            kind = LINK_ABOVE if _identity(entry.stat()) in above else None
        if kind is not None:
            skipped[kind] += not is_index(entry.name)
        else:
            (names if is_folder else images).append(entry.name)
    if all(name.isascii() and name.isdigit() for name in names):
        names.sort(key=int)
    return tuple(names), +skipped, images


def list_files(root: str, class_names: tuple[str, ...]) -> Listing:
    """Lists the images of the class folders.

    Raises:
        DataError: a folder is unreadable, or a link puts a folder into two classes.
    """
    above = identities_above(root)
    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        found = list(pool.map(lambda name: list_class(root, name, above), class_names))
    _check_folders_of_two_classes(root, found)
    files = [one.files() for one in found]
    names = [os.fsencode(file) for some in files for file in some]
    folders = [folder for one in found for folder in one.folders]
    skipped: Counter[str] = sum((one.skipped for one in found), Counter())
    return Listing(
        names=np.frombuffer(b"".join(names), np.uint8),
        ends=np.cumsum([len(name) for name in names], dtype=np.int64),
        labels=np.repeat(np.arange(len(found), dtype=np.int32), [len(some) for some in files]),
        folders=np.frombuffer(b"".join(os.fsencode(folder.path) + b"\0" for folder in folders), np.uint8),
        modified=np.asarray([folder.modified for folder in folders], np.int64),
        skipped=np.frombuffer(json.dumps(skipped).encode(), np.uint8),
        repeated=np.asarray(_count_repeated(found), np.int64),
    )


def list_class(root: str, name: str, above: frozenset[FileId] | None = None) -> ClassListing:
    """Lists one class folder. Follows links, except to a folder above (`identities_above(root)`) or listed before.

    Raises:
        DataError: a folder is unreadable.
    """
    found, seen = ClassListing(), set[FileId]()
    above = identities_above(root) if above is None else above
    real, links = [(name, os.path.islink(os.path.join(root, name)))], list[str]()
    while real or links:  # links last, so that a folder reached twice is listed at its real place
        relative, linked = real.pop() if real else (links.pop(0), True)
        path = os.path.join(root, relative)
        try:
            state = os.stat(path)
        except OSError as error:
            raise _unreadable(path, error) from error
        folder = _Folder(relative, state.st_mtime_ns, _identity(state), linked)
        # Only behind links: some network file systems give two folders the same inode number.
        if linked and folder.identity in above | seen:
            found.skipped[LINK_ABOVE if folder.identity in above else LINK_AGAIN] += 1
            continue
        seen.add(folder.identity)
        found.folders.append(folder)
        for entry in _entries(path):
            kind, is_folder = _kind(entry)
            if kind is not None:
                found.skipped[kind] += 1
            elif is_folder and entry.is_symlink():
                links.append(f"{relative}/{entry.name}")
            elif is_folder:
                real.append((f"{relative}/{entry.name}", linked))
            else:
                folder.images.append(entry.name)
                if entry.is_symlink():
                    found.links.append(_identity(entry.stat()))
                else:
                    folder.inodes.append(entry.inode())
    found.folders.sort(key=lambda folder: folder.path)
    return found


def holds_images(folder: str, depth: int = 3) -> bool:
    """Whether a folder holds an image, or up to `depth` levels of its sub-folders do."""
    folders = []
    try:
        for entry in _entries(folder):
            kind, is_folder = _kind(entry)
            if kind is None and not is_folder:
                return True
            if kind is None and not entry.is_symlink():
                folders.append(entry.path)
    except DataError:
        return False
    return depth > 0 and any(holds_images(inner, depth - 1) for inner in folders[:20])


def identities_above(root: str) -> frozenset[FileId]:
    """Returns device and inode of a folder and of all folders above it."""
    path, found = os.path.realpath(root), set()
    while True:
        found.add(_identity(os.stat(path)))
        if path == os.path.dirname(path):
            return frozenset(found)
        path = os.path.dirname(path)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Returns the entries of a folder, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from error
    return iter(found)


def _kind(entry: os.DirEntry[str]) -> tuple[str | None, bool]:
    """Returns (why an entry is skipped, None for an image or a folder to search; whether it is a folder)."""
    try:
        if entry.is_dir():
            return skipped_folder(entry.name), True
        exists = entry.is_file()
    except OSError:  # a link to itself
        exists = False
    kind = skipped_file(entry.name)
    if kind is None and not exists:
        kind = BROKEN_LINK if entry.is_symlink() else NOT_A_FILE
    return kind, False


def _identity(state: os.stat_result) -> FileId:
    return state.st_dev, state.st_ino


def _unreadable(path: str, error: OSError) -> DataError:
    return DataError(f"{printable(path)}: the folder cannot be read ({error.strerror}); make it readable or remove it")


def _check_folders_of_two_classes(root: str, found: list[ClassListing]) -> None:
    first: dict[FileId, tuple[int, _Folder]] = {}
    for label, one in enumerate(found):
        for folder in one.folders:
            other_label, other = first.setdefault(folder.identity, (label, folder))
            if other_label != label and (folder.linked or other.linked):
                raise DataError(
                    f"{printable(os.path.join(root, other.path))} and {printable(os.path.join(root, folder.path))} are the same "
                    "folder, by a link, in two classes: remove one of them"
                )


def _count_repeated(found: list[ClassListing]) -> tuple[int, int]:
    """Counts images that are links to another image's file, and those of them in another class than that image."""
    targets = {identity for one in found for identity in one.links}
    label_of: dict[FileId, int] = {}
    for label, one in enumerate(found):
        for folder in one.folders if targets else ():
            inside = ((folder.identity[0], inode) for inode in folder.inodes)
            label_of |= {identity: label for identity in inside if identity in targets}
    repeated = elsewhere = 0
    for label, one in enumerate(found):
        for identity in one.links:
            if identity in label_of:
                repeated += 1
                elsewhere += label_of[identity] != label
            else:
                label_of[identity] = label
    return repeated, elsewhere
