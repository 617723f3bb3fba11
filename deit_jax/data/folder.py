"""Images in class folders, and the index that saves listing them at every start.

ImageNet has 1.28 million files; listing them takes seconds on a local disk and minutes on a network one. The first start writes
what it found to an index; later ones only look whether a folder has changed since.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from deit_jax.data.sources import DataError, Example, MissingDataError, UnusableError, digest

# torchvision.datasets.folder.IMG_EXTENSIONS, so that a folder has the same files here and there.
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

INDEX_NAME = ".deit_jax_index.npz"
_INDEX_VERSION = 1
_LISTING_THREADS = 16  # a network file system answers many questions at a time as fast as one
# A folder that changed this short a time before it was listed may change again without its modification time telling.
_SETTLED_SECONDS = 2.0


class ImageFolderSource:
    """One folder a class, as `torchvision.datasets.ImageFolder` reads it: same classes, same files, same order.

    Classes are the sorted names of the sub-folders of `root`, unless all of them are numbers: those are sorted as numbers, where
    torchvision would put 10 before 2 (ImageNet V2 names its folders by the class). Files are searched in them
    recursively. Only names are read here; a file's bytes are read when it is asked for.

    Args:
        root: the split's folder, e.g. `/data/imagenet/train`.
        use_index: read the names from the index of an earlier start where no folder has changed since, and write one where
            there is none. It lies in `root`, or, if nothing can be written there, in the user's cache folder.

    Raises:
        DataError: `root` is missing, has no class folders, or a class folder has no images.
    """

    def __init__(self, root: str | os.PathLike[str], use_index: bool = True):
        self._root = os.fspath(root)
        if not os.path.isdir(self._root):
            raise MissingDataError(
                f"{self._root}: no such folder; set data.path to the folder that holds `train` and `val`, or with data.held_out "
                "the class folders"
            )
        self._class_names = class_folders(self._root)
        if not self._class_names:
            raise DataError(f"{self._root}: no class folders; put the images of each class in a folder of its own")
        listing = _read_index(self._root, self._class_names) if use_index else None
        if listing is None:
            began = time.time()
            listing = _list_files(self._root, self._class_names)
            if use_index and listing.modified.max() < (began - _SETTLED_SECONDS) * 1e9:
                _write_index(self._root, listing)
        for label in np.flatnonzero(np.bincount(listing.labels, minlength=len(self._class_names)) == 0):
            raise DataError(
                f"{os.path.join(self._root, self._class_names[label])}: a class folder without images "
                f"({' '.join(IMAGE_EXTENSIONS)}); add images or remove the folder"
            )
        self._listing = listing

    @property
    def class_names(self) -> tuple[str, ...]:
        """The folders' names, in the order of the labels."""
        return self._class_names

    def __len__(self) -> int:
        return len(self._listing.labels)

    def __getitem__(self, index: int) -> Example:
        try:
            with open(self.describe(index), "rb") as file:
                return Example(file.read(), int(self._listing.labels[index]))
        except FileNotFoundError as error:
            raise UnusableError(f"{self.describe(index)}: is gone; restore the file or start again") from error
        except OSError as error:
            raise DataError(
                f"{self.describe(index)}: cannot be read ({error.strerror}); restore the file or start again"
            ) from error

    @property
    def labels(self) -> np.ndarray:
        """Of all images, int32 `[N]`."""
        return self._listing.labels

    def relative_path(self, index: int) -> str:
        """The file's path from the split's folder on."""
        return self._listing.file(index)

    def describe(self, index: int) -> str:
        """The file's path."""
        return os.path.join(self._root, self._listing.file(index))

    def file_name(self, index: int) -> str:
        """The file's name, without its folders."""
        return self._listing.file(index).rpartition("/")[2]

    def fingerprint(self) -> str:
        """Of the files' relative paths and their labels."""
        return digest(self._listing.names, self._listing.ends, self._listing.labels)


def class_folders(root: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of the folders in `root`: sorted, if all are numbers then by these."""
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    if all(name.isascii() and name.isdigit() for name in names):
        names.sort(key=int)
    return tuple(names)


@dataclasses.dataclass(frozen=True)
class _Listing:
    """The files of a folder, in order, and the state of the folders that they were found in.

    Names are one array of bytes, not a million strings: it loads at once and is small to send to a worker.
    """

    names: np.ndarray  # uint8, paths relative to the root, end to end
    ends: np.ndarray  # int64[N]: where each path ends
    labels: np.ndarray  # int32[N]
    folders: np.ndarray  # uint8, the folders below the root, relative to it, each ended by a zero
    modified: np.ndarray  # int64: their times of modification, ns

    def file(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.names[start : self.ends[index]].tobytes())

    def is_current(self, root: str) -> bool:
        folders = self.folders.tobytes().split(b"\0")[:-1]
        return len(folders) == len(self.modified) and all(
            os.stat(os.path.join(os.fsencode(root), folder)).st_mtime_ns == modified
            for folder, modified in zip(folders, self.modified.tolist(), strict=True)
        )

    def classes(self) -> tuple[str, ...]:
        return tuple(os.fsdecode(folder) for folder in self.folders.tobytes().split(b"\0")[:-1] if b"/" not in folder)


def _list_class(root: str, name: str) -> tuple[list[tuple[str, int]], list[str]]:
    """The folders of a class with their times of modification, and its image files, as paths relative to `root`."""
    folders, files = [], []
    for folder, _, in_folder in sorted(os.walk(os.path.join(root, name), followlinks=True)):
        relative = os.path.relpath(folder, root).replace(os.sep, "/")
        folders.append((relative, os.stat(folder).st_mtime_ns))
        files += [f"{relative}/{file}" for file in sorted(in_folder) if file.lower().endswith(IMAGE_EXTENSIONS)]
    return folders, files


def _list_files(root: str, class_names: tuple[str, ...]) -> _Listing:
    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        found = list(pool.map(lambda name: _list_class(root, name), class_names))
    names = [os.fsencode(file) for _, files in found for file in files]
    folders = [folder for some, _ in found for folder in some]
    return _Listing(
        names=np.frombuffer(b"".join(names), np.uint8),
        ends=np.cumsum([len(name) for name in names], dtype=np.int64),
        labels=np.repeat(np.arange(len(found), dtype=np.int32), [len(files) for _, files in found]),
        folders=np.frombuffer(b"".join(os.fsencode(name) + b"\0" for name, _ in folders), np.uint8),
        modified=np.asarray([modified for _, modified in folders], np.int64),
    )


def index_paths(root: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Where the index of a folder may be: in the folder itself, else in the user's cache folder, under the path's digest."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deit_jax"
    digest = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:24]
    return Path(root) / INDEX_NAME, cache / f"index_{digest}.npz"


def _read_index(root: str, class_names: tuple[str, ...]) -> _Listing | None:
    """An index that tells of the folder as it is now, or None."""
    for path in index_paths(root):
        try:
            with np.load(path, allow_pickle=False) as file:
                if int(file["version"]) != _INDEX_VERSION:
                    continue
                listing = _Listing(**{field.name: file[field.name] for field in dataclasses.fields(_Listing)})
            consistent = len(listing.ends) == len(listing.labels) and listing.ends[-1] == len(listing.names)
            if consistent and listing.classes() == class_names and listing.is_current(root):
                return listing
        except Exception:  # no index, a damaged one, a folder that has gone: list the files anew
            continue
    return None


def _write_index(root: str, listing: _Listing) -> None:
    """Keeps a listing for the next start, in the first place that can be written; it is no matter if none can."""
    for path in index_paths(root):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".npz")
        except OSError:
            continue
        try:
            with open(handle, "wb") as file:
                np.savez(file, version=_INDEX_VERSION, **dataclasses.asdict(listing))
            os.chmod(temporary, 0o644)  # others may train on this data, too
            os.replace(temporary, path)  # whole or not at all, also when several hosts write
            return
        except OSError:  # e.g. the disk is full
            os.unlink(temporary)
