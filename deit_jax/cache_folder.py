"""The user's folders for what can be made again, and machines that lack them."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from pathlib import Path


def cache_folder() -> Path | None:
    """`$XDG_CACHE_HOME/deit_jax`, else `~/.cache/deit_jax`; None for a user without a home, e.g. of a container.

    The folder may not exist yet, and it may not be writable.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the specification ignores other values
        return Path(base, "deit_jax")
    return Path(os.path.expanduser("~"), ".cache", "deit_jax") if has_home() else None


def shared_cache_folder(workdir: Path) -> Path:
    """Where the processes of a run keep what can be made again: beside the workdir, on the disk that all of them share.

    Each user has one, for what is there is trusted: see `why_unsafe`. It may not exist yet.
    """
    return workdir.resolve().parent / f".deit_jax-{os.getuid()}"


def why_unsafe(folder: Path) -> str:
    """Why other users could choose what this one reads from a folder: "belongs to another user", "can be written by its group".

    "" if they could not, or the folder does not exist.
    """
    try:
        status, link = os.stat(folder), os.lstat(folder)  # somebody else's link may lead to a folder of this user's
    except OSError:
        return ""
    if status.st_uid != os.getuid() or link.st_uid not in (os.getuid(), 0):
        return "belongs to another user"
    for who, bit in (("everybody", stat.S_IWOTH), ("its group", stat.S_IWGRP)):
        if status.st_mode & bit:
            return f"can be written by {who}"
    return ""


def is_own(folder: Path) -> bool:
    """Whether a folder that exists belongs to this user."""
    return os.stat(folder).st_uid == os.getuid()


def has_home() -> bool:
    """Whether "~" is a folder's name: HOME or the list of users has to say which."""
    return os.environ.get("HOME") != "" and os.path.isabs(os.path.expanduser("~"))


def without_home() -> None:
    """Give a process whose user has no home one that does not exist, so that other libraries do without.

    They would take "~" for the name of a folder, and make it in the current one. Not even root can make one below /dev/null.
    """
    if not has_home():
        os.environ["HOME"] = os.devnull


def have_temporary_folder(*others: Path) -> None:
    """Let temporary files go to shared memory, or to the first of `others` that can be written, where /tmp and its like cannot.

    A folder that does not exist yet stands for the one that it will be in. matplotlib needs a temporary folder where it cannot
    write to the home, and describes that at length; it is asked to be silent.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        for folder in (Path("/dev/shm"), *others):
            there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
            if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
                tempfile.tempdir = os.environ["TMPDIR"] = str(there)
                return
