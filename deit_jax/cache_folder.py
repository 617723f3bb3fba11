"""Cache folders of the user, and substitutes for missing home and temporary folders."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from pathlib import Path


def cache_folder() -> Path | None:
    """Returns `$XDG_CACHE_HOME/deit_jax`, else `~/.cache/deit_jax`; None for a user without a home, e.g. in a container.

    The folder may not exist or may not be writable.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the specification ignores other values
        return Path(base, "deit_jax")
    return Path(os.path.expanduser("~"), ".cache", "deit_jax") if has_home() else None


def shared_cache_folder(workdir: Path) -> Path:
    """Returns the cache folder shared by the processes of a run: next to the workdir, on the disk that all of them share.

    It is named after the user, because its content is trusted: see `why_unsafe`. It may not exist.
    """
    return workdir.resolve().parent / f".deit_jax-{os.getuid()}"


def why_unsafe(folder: Path) -> str:
    """Why other users could control the content of a folder: "belongs to another user", "can be written by its group".

    "" if they cannot, or if the folder does not exist.
    """
    try:
        status, link = os.stat(folder), os.lstat(folder)  # another user's link may point to this user's folder
    except OSError:
        return ""
    if status.st_uid != os.getuid() or link.st_uid not in (os.getuid(), 0):
        return "belongs to another user"
    for who, bit in (("everybody", stat.S_IWOTH), ("its group", stat.S_IWGRP)):
        if status.st_mode & bit:
            return f"can be written by {who}"
    return ""


def is_own(folder: Path) -> bool:
    """Whether an existing folder belongs to this user."""
    return os.stat(folder).st_uid == os.getuid()


def has_home() -> bool:
    """Whether "~" is defined, by HOME or by the list of users."""
    return os.environ.get("HOME") != "" and os.path.isabs(os.path.expanduser("~"))


def without_home() -> None:
    """Sets HOME to a folder that cannot be created, if the user has no home, so that libraries do without.

    Otherwise they create a folder named "~" in the current one. Not even root can create a folder below /dev/null.
    """
    if not has_home():
        os.environ["HOME"] = os.devnull


def have_temporary_folder(*others: Path) -> None:
    """Uses shared memory, or the first of `others` that is writable, for temporary files if /tmp and the like are not writable.

    For a folder that does not exist, its nearest existing parent counts. matplotlib, which needs a temporary folder if it cannot
    write to the home, reports that at length, so its logger is silenced.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        for folder in (Path("/dev/shm"), *others):
            existing = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
            if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
                tempfile.tempdir = os.environ["TMPDIR"] = str(existing)
                return
