"""The errors that a user can fix."""

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
    """Something given to the program cannot be used. The message is one line: what, where, what to do.

    The command line prints it without a traceback, and exits with `exit_status`.
    """

    exit_status = 2


class Stopped(Exception):
    """The run was asked to stop and has saved. The same command goes on."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h


def require_choice(name: str, value: object, choices: Sequence[str], error: type[ValueError] = UserError) -> None:
    """Raise `error`, in one line with all choices and the nearest, unless an argument's value is one of a few strings."""
    if isinstance(value, str) and value in choices:
        return
    lower = [choice.lower() for choice in choices]
    near = difflib.get_close_matches(str(value).lower(), lower, n=1, cutoff=0.5)
    nearest = f"; the nearest is {choices[lower.index(near[0])]!r}" if near else ""
    raise error(f"{name}={shortened(repr(value))} is none of {', '.join(choices)}{nearest}")


def refuse_address(name: str, path: object, error: type[ValueError] = UserError) -> None:
    """Raise `error` for "gs://bucket/folder" and the like, which pathlib would take for a folder of this machine."""
    if re.match(r"[a-zA-Z][\w+.-]+://", str(path)):
        raise error(f"{name}={shortened(repr(str(path)))} is an address: give a path on a disk of this machine")


def shortened(text: str, length: int = 150) -> str:
    """What was given, as a message may repeat it: in one line, not too long."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= length else f"{text[:length]}..."


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


def raised_outside(error: BaseException, file: str = "") -> str:
    """What code from outside the package has raised, in one line: the kind, the text, and the file and line that were reached.

    file: the code's, where other libraries call it; "": the first file outside of the package.
    """
    said = f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_inside(frame.filename)]
    # What the user's file calls, e.g. JAX, is deeper.
    own = [frame for frame in frames if frame.filename == file]
    own = own or [frame for frame in frames if frame.filename == frames[0].filename]
    return f"{said} ({own[-1].filename}, line {own[-1].lineno})" if own else said


def _is_inside(file: str) -> bool:
    return file.startswith(
        (os.path.dirname(os.path.abspath(__file__)) + os.sep, "<frozen importlib", importlib.__path__[0])
    )


@contextlib.contextmanager
def errors_only(*loggers: str) -> Iterator[None]:
    """Let loggers of these names, which are libraries' own, log errors alone; their levels are put back."""
    found = [logging.getLogger(name) for name in loggers]
    before = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(found, before, strict=True):
            logger.setLevel(level)
