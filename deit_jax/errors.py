"""The errors that a user can fix."""

from __future__ import annotations

import errno
import os


class UserError(ValueError):
    """Something given to the program cannot be used. The message is one line: what, where, what to do.

    The command line prints it without a traceback, and exits with `exit_status`.
    """

    exit_status = 2


class Stopped(Exception):
    """The run was asked to stop and has saved. The same command goes on."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h


# What a disk can do to a write, in the system's words: Orbax and TensorStore hand them on in longer messages.
_DISK_FAULTS = [
    os.strerror(code)
    for code in (
        errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ESTALE, errno.EACCES, errno.EPERM, errno.ENOTDIR,
    )
]  # fmt: skip


def machine_fault(error: BaseException) -> str | None:
    """What is wrong with the disk, in the system's words, if that is what an exception says; else None."""
    text = str(error).lower()
    return next((fault for fault in _DISK_FAULTS if fault.lower() in text), None)


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its kind, if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
