"""The index of a folder's files or of shards, which saves listing them at every start.

ImageNet has 1.28 million files; listing them takes seconds on a local disk and minutes on a network disk. The first start writes
its listing to an index; later starts only check whether a folder has changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from deit_jax.cache_folder import cache_folder
from deit_jax.data.file_names import INDEX_PREFIX, RULES
from deit_jax.data.folder_listing import Listing

AUTO = "auto"
_VERSION = 2


def index_path(root: str | os.PathLike[str], place: str) -> Path | None:
    """Returns the index file of a folder, named by the digest of its path; None if there is none, e.g. without a home folder.

    place: the folder of the indices, "auto" for `deit_jax` in the user's cache folder, "" for none.
    """
    return index_file(os.fsencode(os.path.realpath(root)), place)


def index_file(what: bytes, place: str) -> Path | None:
    """Returns the index file named by the digest of `what`; place as in `index_path`."""
    folder = cache_folder() if place == AUTO else place and Path(os.path.expanduser(place))
    if not folder:
        return None
    return Path(folder) / f"{INDEX_PREFIX}_{hashlib.sha256(what).hexdigest()[:24]}.npz"


def read_index(root: str, class_names: tuple[str, ...], place: str) -> Listing | None:
    """Returns the listing in a folder's index if it is current, else None."""
    path = index_path(root, place)
    if path is None:
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if int(file["version"]) != _VERSION or str(file["rules"]) != RULES:
                return None
            listing = Listing(**{field.name: file[field.name] for field in dataclasses.fields(Listing)})
        consistent = len(listing.ends) == len(listing.labels) and listing.ends[-1] == len(listing.names)
        listing.skipped_kinds()
        if consistent and listing.classes() == class_names and listing.is_current(root):
            return listing
    except Exception:  # a missing or damaged index, or a deleted folder: list the files again
        pass
    return None


def write_index(root: str, listing: Listing, place: str) -> None:
    """Writes a listing for the next start; does nothing if the place is not writable."""
    if (path := index_path(root, place)) is not None:
        write_arrays(path, version=_VERSION, rules=RULES, **dataclasses.asdict(listing))


def write_arrays(path: Path, **arrays: Any) -> None:
    """Writes an index file; does nothing if its folder is not writable."""
    temporary = None
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)  # writable only by its owner, with any umask
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".npz")
        with open(handle, "wb") as file:
            np.savez(file, **arrays)
        os.chmod(temporary, 0o644)  # other users may train on this data too
        os.replace(temporary, path)  # atomic, even if several hosts write
    except OSError:  # e.g. the disk is full
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
