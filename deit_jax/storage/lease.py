"""The lock of a run in a bucket: an object with a lease, which its holder renews.

A bucket knows nothing of processes, so a lock must end by itself. An object is created if absent, and replaced if its version
is the one that was seen, so that of several processes one succeeds. Its age is measured by the store's clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deit_jax.errors import UserError
from deit_jax.storage.bucket import Bucket
from deit_jax.storage.store import ABSENT, ChangedError, Stored, Version

LEASE_SECONDS = 60.0
RENEW_SECONDS = 15.0
_LOOK_SECONDS = 2.0  # between two looks at another one's lock
_WAITING = ".waiting"  # suffix of an object that a waiting process writes to ask the store for the time


class LostLockError(UserError):
    """Another run has taken over the workdir. The message is one line."""


class HeldError(Exception):
    """Another process holds the lock, and renews it. The message names the process."""


class Lease:
    """The lock of a run, held from `take` to `release`.

    Args:
        bucket: of the run.
        name: of the lock's object.
        seconds: an object that is older may be taken over.
    """

    def __init__(self, bucket: Bucket, name: str, seconds: float = LEASE_SECONDS, renew: float = RENEW_SECONDS) -> None:
        self._bucket, self._name, self._seconds, self._renew_seconds = bucket, name, seconds, renew
        self.token = uuid.uuid4().hex[:12]  # of this holder
        self._holder = {"token": self.token, **_this_process(), "lease_seconds": seconds}
        self._writes = 0
        self._version = ABSENT
        self._renewed = 0.0  # when the last successful renewal was sent, by `_now`
        self._lost: str | None = None  # the new holder
        self._mutex = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def holder(self) -> str:
        """Returns the token of the holder: of this process, or of the one that the object names; "" if there is none."""
        if self._thread is not None:
            return self.token
        return str(_parsed(self._bucket.read(self._name) or b"").get("token", ""))

    def take(self, say: Callable[[str], None]) -> None:
        """Takes the lock. Waits for the end of a lease that is not renewed, and says so.

        Raises HeldError if another process renews the lock, and BucketError.
        """
        if self._bucket.scheme == "s3":
            self._bucket.require_conditions(f"{self._name}.{self.token}")
        announced = False
        first: Version | None = None  # the version of the lock when it was first seen
        while True:
            sent = _now()
            try:
                self._hold(self._bucket.write(self._name, self._content(), version=ABSENT), sent)
                return
            except ChangedError:
                there = self._bucket.stat(self._name)
                text = self._bucket.read(self._name) if there is not None else None
            if there is None or text is None:
                continue
            holder = _parsed(text)
            if first not in (None, there.version):
                raise HeldError(_named(holder))
            first = there.version
            left = self._seconds_left(there, holder)
            if left <= 0:
                with contextlib.suppress(ChangedError):  # another process was faster
                    sent = _now()
                    self._hold(self._bucket.write(self._name, self._content(), version=there.version), sent)
                    return
                continue
            if not announced:
                say(
                    f"{self._bucket.address} is locked by {_named(holder)}, which may have ended: waiting for the end of its "
                    f"lease, at most {left:.0f} seconds"
                )
                announced = True
            time.sleep(min(left, _LOOK_SECONDS))

    def check(self, *, ask: bool = False) -> None:
        """Raises LostLockError if another run has taken the lock; does nothing if it is not held.

        ask: ask the store. If the lease may have ended, e.g. because this process was stopped, the lock is renewed in any case.
        """
        if self._thread is None and self._lost is None:
            return
        if _now() - self._renewed > self._seconds - 2 * self._renew_seconds:
            self._renew()
        elif ask:
            self._look()
        self.check_noticed()

    def check_noticed(self) -> None:
        """Raises LostLockError if the loss of the lock has been noticed; asks nothing."""
        if self._lost is not None:
            raise LostLockError(
                f"--workdir={self._bucket.address} was taken over by another run ({self._lost}), since this one did not renew "
                "its lock in time; this run ends and writes nothing more"
            )

    def release(self) -> None:
        """Removes the lock if it is held."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(UserError):
            self.check(ask=True)
            self._bucket.delete(self._name, version=self._version)
        self._thread = None

    def _hold(self, stored: Stored, sent: float) -> None:
        self._version, self._renewed, self._ended = stored.version, sent, threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lock of the workdir", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        pause = self._renew_seconds
        while not self._ended.wait(pause):
            pause = self._renew_seconds
            try:
                self._renew()
            except Exception:  # if it lasts, the next check raises it
                pause = min(_LOOK_SECONDS, self._renew_seconds)
            if self._lost is not None:
                return

    def _renew(self) -> None:
        with self._mutex:
            if self._lost is not None:
                return
            sent = _now()
            try:
                stored = self._bucket.write(self._name, self._content(), version=self._version)
                self._version, self._renewed = stored.version, sent
            except ChangedError:
                self._note_loss()

    def _look(self) -> None:
        with self._mutex:  # the store limits how often an object is written
            there = self._bucket.stat(self._name)
            if there is None or there.version != self._version:
                self._note_loss()

    def _note_loss(self) -> None:
        text = self._bucket.read(self._name)
        self._lost = "unknown" if text is None else _named(_parsed(text))

    def _content(self) -> bytes:
        """Returns what the object says next. Each content is different, because the version of an object may follow from it."""
        self._writes += 1
        return (json.dumps({**self._holder, "write": self._writes}) + "\n").encode()

    def _seconds_left(self, there: Stored, holder: dict[str, Any]) -> float:
        """Returns how long the lease still lasts by the store's clock; 0 if the process that holds it is known to have ended."""
        if _has_ended(holder):
            return 0.0
        name = self._name + _WAITING
        now = self._bucket.write(name, self._content()).updated
        self._bucket.delete(name)
        lease = holder.get("lease_seconds")
        return there.updated + (lease if isinstance(lease, int | float) else self._seconds) - now


def _now() -> float:
    return time.clock_gettime(
        getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    )  # also counts while the machine sleeps


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "boot": _boot(),
        "pids": _pids(),
    }


def _boot() -> str:
    """Returns an identifier of the machine since it was started; "" if the system has none."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return ""


def _pids() -> str:
    """Returns an identifier of the set of processes that this one sees, which a container has for itself."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _started(pid: int) -> str:
    """Returns when a process was started, in the system's ticks; "" if it does not exist or has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine, of this boot and this container, that does not exist any more."""
    own = _this_process()
    same = all(own[name] and holder.get(name) == own[name] for name in ("host", "boot", "pids"))
    pid = holder.get("pid")
    return same and isinstance(pid, int) and _started(pid) != holder.get("started")


def _parsed(content: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        if isinstance(holder := json.loads(content), dict):
            return holder
    return {}


def _named(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= set(holder) else "unknown"
