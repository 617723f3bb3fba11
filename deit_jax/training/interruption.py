"""Stops a run after a signal, once it has saved."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

import jax

from deit_jax import console

# SIGHUP comes from a closed terminal or connection, SIGUSR1 from batch systems before the time limit.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# A second one of these exits at once. Not SIGHUP: a closing terminal may send it twice, which must not cost the save.
_INSISTENT = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Inside the block, SIGTERM, Ctrl-C, SIGHUP and SIGUSR1 only make `asked` true; a second SIGTERM or Ctrl-C exits at once.

    Signals that the process ignores, such as SIGHUP under nohup, stay ignored.

    With several processes, a signal to one stops all after the same step, through jax.distributed's preemption service, which
    handles SIGTERM itself. A second signal then exits at once only after all have agreed on that step.
    """

    def __init__(self) -> None:
        self._asked = False
        self._distributed = jax.process_count() > 1
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # Python handles signals only there
            # With several processes jax handles SIGTERM.
            for number in _SIGNALS[1:] if self._distributed else _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def asked(self, step: int) -> bool:
        """Returns whether to stop after `step`; the same in all processes. Does not wait for a device."""
        if not self._distributed:
            return self._asked
        from jax.experimental import multihost_utils

        try:
            agreed = multihost_utils.reached_preemption_sync_point(step)
        except RuntimeError:  # the service is disabled: a signal exits at once
            return False
        if agreed and not self._asked:
            self._asked = True
            console.say(f"asked to stop: saving after step {step}")
            for number in (signal.SIGTERM, *self._previous):
                signal.signal(number, self._handle)
        return agreed

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if self._asked:
            if number not in _INSISTENT:
                return
            _print(f"{name} again: exiting at once, the last checkpoint is intact")
            os._exit(128 + number)
        self._asked = not self._distributed
        _print(f"{name}: saving after this step, then stopping; a second Ctrl-C or SIGTERM exits at once")
        if self._distributed:
            os.kill(os.getpid(), signal.SIGTERM)  # to the preemption service, which passes it on
            signal.signal(number, signal.SIG_DFL if number in _INSISTENT else signal.SIG_IGN)


def _print(line: str) -> None:
    # Not the builtin: the signal may interrupt a print. A closed terminal must not end the run before it has saved.
    with contextlib.suppress(OSError):
        os.write(2, f"\n{line}\n".encode())
