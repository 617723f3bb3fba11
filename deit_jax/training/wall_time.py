"""Where the wall time of a run goes, over all its starts."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from deit_jax import console
from deit_jax.storage.files import UnreadableError
from deit_jax.storage.workdir import WALL_TIME, Workdir, WorkdirError

# Parts of the wall time, with their meaning for users.
PARTS = {
    "start": "before the first step",
    "compile": "compiling and the first step",
    "steps": "training steps",
    "data": "waiting for data",
    "evaluation": "evaluation",
    "save": "waiting for saves",
    "lost": "steps repeated after an interruption or rollback",
}
_WRITE_EVERY = 30.0  # seconds between writes, except at saves


class WallTime:
    """Assigns every second between the starts and ends of a run to one of `PARTS`; kept in WORKDIR/wall_time.json.

    The file has an entry for each start, written at every save and about every 30 seconds. The next start counts the seconds
    after an entry's last save as lost, if the run was interrupted there. The time between two starts is not counted, nor are
    the seconds after the last write of a killed process.
    """

    def __init__(self, workdir: Workdir, *, write: bool) -> None:
        """Starts counting, in the part "start". write: whether this process writes the file."""
        self._workdir, self._write_file = workdir, write
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._part, self._since = "start", time.monotonic()
        self._saved, self._written = dict(self._seconds), self._since
        self._from_step: int | None = None  # before `begin`
        self._waited_before = 0.0  # for data, until the last `begin`
        self._earlier: list[dict[str, Any]] = []

    def begin(self, step: int) -> None:
        """Called when the workdir is locked and the step is known after which the run continues; again after a rollback to it.

        What was not saved before a rollback is lost.
        """
        self.enter(self._part)
        if self._from_step is not None:
            self._seconds = _without(self._seconds, {name: self._seconds[name] - self._saved[name] for name in PARTS})
            self._waited_before, self._saved = self._seconds["data"], dict(self._seconds)
            return
        with contextlib.suppress(UnreadableError, KeyError, TypeError, AttributeError):
            self._earlier = [_closed(entry) for entry in self._workdir.read_json(WALL_TIME)["starts"]]
        self._from_step = step
        self._saved = dict(self._seconds)

    def enter(self, part: str) -> None:
        """The seconds from now on belong to `part`."""
        now = time.monotonic()
        self._seconds[self._part] += now - self._since
        self._part, self._since = part, now

    def note(self, step: int, waited: float, *, saved: bool = False) -> None:
        """Writes the file if it is time to; in a bucket only when a step was saved, since a write may wait for the store.

        waited: seconds of "steps" since `begin` that were spent waiting for data; saved: `step` was saved just now.

        A disk error is ignored: a full disk ends the run at its next checkpoint.
        """
        self.enter(self._part)
        waited += self._waited_before
        self._seconds["steps"] += self._seconds["data"] - waited
        self._seconds["data"] = waited
        if saved:
            self._saved = dict(self._seconds)
        due = self._since - self._written > _WRITE_EVERY and not self._workdir.in_bucket
        if self._write_file and (saved or due):
            self._written = self._since
            unsaved = {name: self._seconds[name] - self._saved[name] for name in PARTS}
            entry = {"from_step": self._from_step, "step": step, "seconds": dict(self._seconds), "unsaved": unsaved}
            with contextlib.suppress(WorkdirError):
                self._workdir.write_json(WALL_TIME, {"starts": [*self._earlier, entry]})

    def total(self) -> dict[str, Any]:
        """Returns the number of recorded starts, the seconds by part, and the share of "steps" in all, as in results.json."""
        self.enter(self._part)
        entries = [*(entry["seconds"] for entry in self._earlier), self._seconds]
        seconds = {name: sum(entry.get(name, 0.0) for entry in entries) for name in PARTS}
        return {
            "starts": len(entries),
            "seconds": seconds,
            "goodput": seconds["steps"] / (sum(seconds.values()) or 1.0),
        }


def _closed(entry: dict[str, Any]) -> dict[str, Any]:
    """Returns the entry of an earlier start with what it had not saved as lost."""
    return {**entry, "seconds": _without(entry["seconds"], entry["unsaved"]), "unsaved": {}}


def _without(seconds: dict[str, float], unsaved: dict[str, float]) -> dict[str, float]:
    """Returns the seconds by part with `unsaved` of them as lost."""
    kept = {name: spent - unsaved.get(name, 0.0) for name, spent in seconds.items()}
    return kept | {"lost": kept["lost"] + sum(unsaved.values())}


def wall_time_line(total: dict[str, Any]) -> str:
    """Returns a line for users about the result of `WallTime.total`, the largest part first."""
    seconds, starts = total["seconds"], total["starts"]
    whole = sum(seconds.values()) or 1.0
    shares = sorted(((spent / whole, PARTS[name]) for name, spent in seconds.items()), reverse=True)
    listed = ", ".join(f"{100 * share:.0f} % {what}" for share, what in shares if share >= 0.005)
    return f"wall time {console.duration(whole)} in {starts} start{'s' if starts > 1 else ''}: {listed}"
