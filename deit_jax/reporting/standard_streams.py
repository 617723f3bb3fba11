"""Keeps a run alive if standard output or error fails: a closed terminal or pipe, or a full disk behind a log file."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from deit_jax.errors import UserError


class OutputError(UserError):
    """The output of a command could not be printed."""


class LenientStream:
    """A text stream that drops text it cannot write; `fault` is the first error. Later writes try again.

    Args:
      stream: the underlying stream; None, as in a process started without one, drops everything.
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
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (stays open until the process ends)
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes a text, or drops it."""
        with self._dropping():
            return int(self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Writes buffered text, or drops it."""
        with self._dropping():
            self._stream.flush()

    def let_go(self) -> None:
        """Flushes; if that fails, redirects the descriptor to /dev/null, so that Python reports nothing at its exit."""
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
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            first, self.fault = self.fault is None, self.fault or error
            if first and self._at_first_fault is not None:
                self._at_first_fault(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_lenient(at_first_fault: Callable[[OSError | ValueError], None] | None = None) -> None:
    """Replaces sys.stdout and sys.stderr by lenient streams, which escape characters that their encoding lacks.

    First opens closed descriptors on /dev/null: otherwise the next opened file, e.g. a checkpoint, would get the number, and with
    it the output of libraries.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            if null != number:
                os.close(null)
            os.set_inheritable(number, True)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError):  # the descriptor was replaced
                stream.reconfigure(errors="backslashreplace")
    if not isinstance(sys.stdout, LenientStream):
        sys.stdout = LenientStream(sys.stdout, 1, at_first_fault)
    if not isinstance(sys.stderr, LenientStream):
        sys.stderr = LenientStream(sys.stderr, 2)


def reader_has_ended(error: OSError | ValueError) -> bool:
    """Returns whether a write failed because the reader of a pipe has closed it, as in `| head -1`."""
    return isinstance(error, BrokenPipeError)


def reason(error: OSError | ValueError) -> str:
    """Returns the system's reason for a failed write."""
    return getattr(error, "strerror", None) or str(error)


def require_printed(*, to_the_end: bool) -> None:
    """Raises OutputError if any output so far could not be written. to_the_end: also if the reader closed a pipe."""
    sys.stdout.flush()
    fault = getattr(sys.stdout, "fault", None)
    if fault is not None and (to_the_end or not reader_has_ended(fault)):
        raise OutputError(f"standard output cannot be written ({reason(fault)}): the result is incomplete")


def let_go() -> None:
    """Call this at the end of the process: drops text that cannot be written, without a message from Python."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, LenientStream):
            stream.let_go()
