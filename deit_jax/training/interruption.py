"""Signals that ask a run to stop: it saves first."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax

from deit_jax import console

# SIGHUP comes from a terminal or a connection that is gone, SIGUSR1 from batch systems before the end of the time.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# A second one of these ends at once. A terminal that goes away may send SIGHUP twice, which must not cost the save.
_INSISTING = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Inside the block SIGTERM, Ctrl-C, SIGHUP and SIGUSR1 only make `asked` true; a second SIGTERM or Ctrl-C ends at once.

    A signal that the process ignores, as SIGHUP under nohup, stays ignored.

    Of several processes one that is asked asks all, through jax.distributed's preemption service, which hears SIGTERM itself:
    they stop after the same step. There a second signal ends the process at once only when all have agreed on that step.
    """

    def __init__(self) -> None:
        self._asked = False
        self._together = jax.process_count() > 1
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python handles no signals
            # In several processes SIGTERM stays with jax's own handler.
            for number in _SIGNALS[1:] if self._together else _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def asked(self, step: int) -> bool:
        """Whether to stop after `step`; the same in all processes. Does not wait for a device."""
        if not self._together:
            return self._asked
        from jax.experimental import multihost_utils

        try:
            agreed = multihost_utils.reached_preemption_sync_point(step)
        except RuntimeError:  # the service is switched off: a signal ends the run as if it were a single one's second
            return False
        if agreed and not self._asked:
            self._asked = True
            console.say(f"asked to stop: saving after step {step}")
            for number in (signal.SIGTERM, *self._previous):
                signal.signal(number, self._hear)
        return agreed

    def _hear(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._asked:
            if number not in _INSISTING:
                return
            _tell(f"{name} again: ending at once, the last checkpoint stays")
            os._exit(128 + number)
        self._asked = not self._together
        _tell(f"{name}: saving after this step, then stopping; a second SIGTERM or Ctrl-C ends at once")
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)  # which the preemption service hears and passes on
            signal.signal(number, signal.SIG_DFL if number in _INSISTING else signal.SIG_IGN)


def _tell(line: str) -> None:
    # Not print: the signal may have come in the middle of one. A terminal that is gone must not end the run before it has saved.
    with contextlib.suppress(OSError):
        os.write(2, f"\n{line}\n".encode())
