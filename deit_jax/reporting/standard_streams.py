"""Standard output and standard error that cannot end a run: a terminal goes away, a pipe closes, the disk of a log fills up."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from deit_jax.errors import UserError


class OutputError(UserError):
    """What a command is for could not be printed. The message is one line."""


class LenientStream:
    """A text stream that drops what cannot be written; `fault` is the error of the first time.

    Every write tries again: a disk may have room later.

    Args:
      stream: the stream that is written to; None, as of a process that was started without one, drops everything.
      number: its file descriptor, 1 or 2.
      at_first_fault: called when a write fails for the first time.
    """

    def __init__(
        self, stream: Any, number: int, at_first_fault: Callable[[OSError | ValueError], None] | None = None
    ) -> None:
        self.fault: OSError | ValueError | None = None
        self._number = number
        self._at_first_fault = at_first_fault
        if stream is None:
            self.fault = ValueError("it is closed")
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (it lives as long as the process)
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        with self._dropping():
            return int(self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what is kept back, or drop it."""
        with self._dropping():
            self._stream.flush()

    def let_go(self) -> None:
        """What cannot be written now is lost without a word when Python closes the stream at its end."""
        with self._dropping():
            self._stream.flush()
            return
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._number)
            os.close(null)

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: somebody has closed it
            first, self.fault = self.fault is None, self.fault or error
            if first and self._at_first_fault is not None:
                self._at_first_fault(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_lenient(at_first_fault: Callable[[OSError | ValueError], None] | None = None) -> None:
    """Put lenient streams in the place of sys.stdout and sys.stderr; they escape what their encoding lacks.

    Closed file descriptors are opened on /dev/null first: the next file that is opened, a checkpoint's say, would get the
    number, and with it what libraries print.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)  # also where it is that number: inherited by other processes
            if null != number:
                os.close(null)
            os.set_inheritable(number, True)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError):  # of a descriptor that was exchanged below it
                stream.reconfigure(errors="backslashreplace")
    if not isinstance(sys.stdout, LenientStream):
        sys.stdout = LenientStream(sys.stdout, 1, at_first_fault)
    if not isinstance(sys.stderr, LenientStream):
        sys.stderr = LenientStream(sys.stderr, 2)


def reader_has_ended(error: OSError | ValueError) -> bool:
    """Whether a write failed because the other end of a pipe is closed, as of `| head -1`."""
    return isinstance(error, BrokenPipeError)


def reason(error: OSError | ValueError) -> str:
    """Why a write failed, in the system's words."""
    return getattr(error, "strerror", None) or str(error)


def require_printed(*, to_the_end: bool) -> None:
    """Raise OutputError if something that was printed so far could not be written.

    to_the_end: also if the reader of a pipe did not want more.
    """
    sys.stdout.flush()
    fault = getattr(sys.stdout, "fault", None)
    if fault is not None and (to_the_end or not reader_has_ended(fault)):
        raise OutputError(f"standard output cannot be written ({reason(fault)}): the result is not complete there")


def let_go() -> None:
    """To be called at the process's end: what could not be written stays unwritten, without messages of Python's."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, LenientStream):
            stream.let_go()
