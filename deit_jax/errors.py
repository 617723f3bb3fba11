"""Errors that a user can fix, and helpers for their messages."""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import logging
import os
import re
import traceback
from collections.abc import Iterator, Sequence


class UserError(ValueError):
    """An input that cannot be used. The message is one line: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with `exit_status`.
    """

    exit_status = 2


class Stopped(Exception):
    """The run was asked to stop and has saved its state. The same command resumes it."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h


def require_choice(name: str, value: object, choices: Sequence[str], error: type[ValueError] = UserError) -> None:
    """Raises `error`, in one line with all choices and the nearest one, if an argument is not one of a few strings."""
    if isinstance(value, str) and value in choices:
        return
    lower = [choice.lower() for choice in choices]
    near = difflib.get_close_matches(str(value).lower(), lower, n=1, cutoff=0.5)
    nearest = f"; the nearest is {choices[lower.index(near[0])]!r}" if near else ""
    raise error(f"{name}={shortened(repr(value))} is none of {', '.join(choices)}{nearest}")


def refuse_address(name: str, path: object, error: type[ValueError] = UserError) -> None:
    """Raises `error` for "gs://bucket/folder" and the like, which pathlib would treat as a local folder."""
    if re.match(r"[a-zA-Z][\w+.-]+://", str(path)):
        raise error(f"{name}={shortened(repr(str(path)))} is an address: give a path on a disk of this machine")


def shortened(text: str, length: int = 150) -> str:
    """Returns a user's input as quoted in messages: in one line, not too long."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= length else f"{text[:length]}..."


# Disk errors in the system's words, which Orbax and TensorStore include in longer messages.
_DISK_FAULTS = [
    os.strerror(code)
    for code in (
        errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ESTALE, errno.EACCES, errno.EPERM, errno.ENOTDIR,
        errno.EMFILE, errno.ENFILE,
    )
]  # fmt: skip


def machine_fault(error: BaseException) -> str | None:
    """Returns the system's description of a disk error if an exception is about one, else None."""
    text = str(error).lower()
    return next((fault for fault in _DISK_FAULTS if fault.lower() in text), None)


def first_line(error: BaseException) -> str:
    """Returns the first line of another library's error message, or its type if there is no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def raised_outside(error: BaseException, file: str = "") -> str:
    """Describes an error raised by code outside of the package in one line: type, message, file and line.

    file: the file of interest if other libraries call it; "": the first file outside of the package.
    """
    text = f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_inside(frame.filename)]
    # Frames of what the user's file calls, e.g. JAX, are deeper.
    own = [frame for frame in frames if frame.filename == file]
    own = own or [frame for frame in frames if frame.filename == frames[0].filename]
    return f"{text} ({own[-1].filename}, line {own[-1].lineno})" if own else text


def _is_inside(file: str) -> bool:
    package = os.path.dirname(os.path.abspath(__file__)) + os.sep
    return file.startswith((package, "<frozen importlib", importlib.__path__[0]))


@contextlib.contextmanager
def errors_only(*loggers: str) -> Iterator[None]:
    """Lets these loggers of libraries log only errors within the block."""
    saved = [(logger, logger.level) for logger in map(logging.getLogger, loggers)]
    for logger, _ in saved:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in saved:
            logger.setLevel(level)
