"""The index that saves listing the files of a folder at every start.

ImageNet has 1.28 million files; listing them takes seconds on a local disk and minutes on a network one. The first start writes
what it found to an index; later ones only look whether a folder has changed since.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np

from deit_jax.cache_folder import cache_folder
from deit_jax.data.file_names import INDEX_PREFIX, RULES
from deit_jax.data.folder_listing import Listing

AUTO = "auto"
_VERSION = 2


def index_path(root: str | os.PathLike[str], place: str) -> Path | None:
    """The file that holds the index of a folder, named by the digest of the folder's path.

    Args:
        root: the folder that holds the class folders.
        place: the folder of the indices, "auto" for `deit_jax` in the user's cache folder, "" for none.

    Returns:
        None where there is no index, also where the user has no home folder.
    """
    folder = cache_folder() if place == AUTO else place and Path(os.path.expanduser(place))
    if not folder:
        return None
    digest = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:24]
    return Path(folder) / f"{INDEX_PREFIX}_{digest}.npz"


def read_index(root: str, class_names: tuple[str, ...], place: str) -> Listing | None:
    """The listing in the index of a folder, if it is that of the folder as it is now, else None."""
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
    except Exception:  # no index, a damaged one, a folder that is gone: list the files again
        pass
    return None


def write_index(root: str, listing: Listing, place: str) -> None:
    """Keeps a listing for the next start; nothing happens where it cannot be written."""
    path = index_path(root, place)
    if path is None:
        return
    temporary = None
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)  # for its owner alone to write, under any umask
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".npz")
        with open(handle, "wb") as file:
            np.savez(file, version=_VERSION, rules=RULES, **dataclasses.asdict(listing))
        os.chmod(temporary, 0o644)  # others may train on this data, too
        os.replace(temporary, path)  # whole or not at all, also when several hosts write
    except OSError:  # e.g. the disk is full
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
