"""Checkpoints of the whole train state. The one module that knows Orbax.

Each has a place of its own (`CheckpointPlaces`) that is finished or is not, and what is finished can be checked;
docs/reliability.md describes what becomes of the others.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from deit_jax import console
from deit_jax.errors import machine_fault
from deit_jax.parallel.distributed import from_main_process, is_main_process
from deit_jax.storage.checkpoints import CheckpointPlaces
from deit_jax.storage.files import disk_faults
from deit_jax.storage.workdir import Workdir, WorkdirLike
from deit_jax.training.checkpoint_folder import (
    MOST_TRIES,
    CheckpointError,
    find_step,
    newest_sound,
    say_what_is_not_compared,
    scored_steps,
)
from deit_jax.training.state import TrainState

_ORBAX = Path(ocp.__file__).parent


def _quiet_orbax() -> None:
    """Leave out what Orbax logs at every save and restore, and what it logs or leaves behind of faults that it raises as well.

    Those come through as exceptions, and so as one line; the same filters a second time change nothing. They stay for the
    process, since Orbax's tasks fail after the call that began them; records of other code pass.
    """
    logging.getLogger("absl").addFilter(_is_worth_telling)
    logging.getLogger("asyncio").addFilter(_is_of_others)
    if sys.unraisablehook is not _report_unraisable:
        global _report_before
        _report_before, sys.unraisablehook = sys.unraisablehook, _report_unraisable


_report_before: Callable[[Any], None] = sys.__unraisablehook__


def _is_worth_telling(record: logging.LogRecord) -> bool:
    if not Path(record.pathname).is_relative_to(_ORBAX):
        return True
    raised = record.exc_info is not None or machine_fault(RuntimeError(record.getMessage())) is not None
    return record.levelno >= logging.ERROR and not raised


def _is_of_others(record: logging.LogRecord) -> bool:
    return str(_ORBAX) not in record.getMessage()  # whose task has failed


def _report_unraisable(unraisable: Any) -> None:
    # TensorStore's writes that end after Orbax has given up on a full disk.
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
        _report_before(unraisable)


class Checkpoints:
    """The checkpoints of a workdir: written in the background, atomically, the newest `keep` and the best kept.

    Opening them removes what a killed run left half-written and renames what is damaged; both are said. A context manager:
    leaving it waits for the last write. All processes of a run make the same calls. From then on this process does not show what
    Orbax itself logs, except errors that it does not raise as well.

    scored_by: of JSON's types, by which evaluation the run scores its weights (images, crop): only scores of the same one are
    compared, and a line names checkpoints of another.

    Raises CheckpointError if the folder cannot be written.
    """

    def __init__(self, workdir: WorkdirLike, *, keep: int = 2, scored_by: Mapping[str, Any] | None = None) -> None:
        self._places = Workdir.at(workdir).checkpoints
        self._keep = keep
        self._scored_by = None if scored_by is None else dict(scored_by)
        _quiet_orbax()
        self._latest: int | None = from_main_process(self._put_in_order)
        self._checkpointer = ocp.StandardCheckpointer()
        self._writing: _Write | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and jax.process_count() > 1:
            return  # the other processes may not be there to finish it with
        try:
            self.wait()
            self._discard_surplus()
            self._checkpointer.close()
        except CheckpointError as second:
            if error is None:
                raise
            console.warn(str(second))  # what came first is told by whoever catches it

    def latest_step(self) -> int | None:
        """The step of the newest sound checkpoint, or of the one that is being written; None if there is none."""
        return self._latest

    def best(self) -> tuple[int, float] | None:
        """(step, top-1) of the checkpoint with the highest top-1 of the run's evaluation; None if there is none."""
        scored = scored_steps(self._places, self._sealed(), self._scored_by)[0]
        if self._writing is not None and self._writing.facts["top1"] is not None:
            scored.append((self._writing.facts["top1"], self._writing.facts["step"]))
        return (max(scored)[1], max(scored)[0]) if scored else None

    def would_be_best(self, top1: float) -> bool:
        """Whether no checkpoint has a top-1 as high; the same in all processes."""
        return from_main_process(lambda: (best := self.best()) is None or top1 > best[1])

    def notes(self) -> dict[str, Any]:
        """What `save` was given beside the newest state; {} if there is none."""
        self.wait()
        latest = self._latest
        if latest is None:
            return {}
        return from_main_process(lambda: self._places.facts(latest).get("notes", {}))

    def save(self, state: TrainState, top1: float | None = None, notes: dict[str, Any] | None = None) -> None:
        """Start writing `state` under its step; a step that is already there is left as it is.

        Args:
          state: the whole state.
          top1: of these weights, in percent, if they have been evaluated.
          notes: what else a resumed run has to know; JSON's types.

        Raises CheckpointError if this or the write before it fails.
        """
        step = int(state.step)
        if step == self._latest:
            return
        self.wait()
        self._discard_surplus()
        facts = {"step": step, "top1": top1, "scored_by": self._scored_by, "notes": notes or {}}
        self._writing = _Write(self._checkpointer, self._places, state, facts, self._latest)
        self._latest = step

    def wait(self) -> None:
        """Return when the last write is finished. Raises CheckpointError if it failed."""
        if self._writing is not None:
            write, self._writing = self._writing, None
            try:
                write.finish()
            except CheckpointError:
                self._latest = write.before
                raise

    def restore(self, like: TrainState) -> TrainState:
        """The newest state, with the shapes, types and shardings of the abstract state `like`.

        Raises CheckpointError if there is none, or if it is another model's: with the names of what differs.
        """
        self.wait()
        if self._latest is None:
            raise CheckpointError(f"{self._places}: no checkpoint here")
        path = self._places.state(self._latest)
        if differences := _differences(_stored_shapes(self._checkpointer, path), like):
            raise CheckpointError(
                f"{self._places.address(self._latest)} does not hold this configuration's state ({differences}); "
                "use another --workdir, or the configuration it was written with"
            )
        return self._checkpointer.restore(path, like)

    def _sealed(self) -> list[int]:
        return [step for step in self._places.steps() if self._places.is_sealed(step)]

    def _discard_surplus(self) -> None:
        if not is_main_process():
            return
        steps, best = self._sealed(), self.best()
        for step in steps[: -self._keep]:
            if best is None or step != best[0]:
                self._places.discard(step)

    def _put_in_order(self) -> int | None:
        """Remove what is half-written, rename what is damaged; the newest sound step, or None."""
        places = self._places
        with disk_faults(
            lambda reason: CheckpointError(f"{places} cannot be used ({reason}); fix that or use another --workdir")
        ):
            places.prepare()
            if not places.have_manifests():
                for step in places.steps():  # of a version that wrote none; Orbax committed them by renaming
                    if not places.is_sealed(step):
                        console.say(f"checkpoint {step} is of an earlier version and gets a manifest now")
                        places.seal(step, {"step": step, "top1": None, "notes": {}})
                places.say_that_they_have_manifests()
            newest = newest_sound(places, self._clear_away)
            say_what_is_not_compared(scored_steps(places, self._sealed(), self._scored_by)[1])
            return newest

    def _clear_away(self, step: int, reason: str) -> None:
        if self._places.is_unfinished(step):
            self._places.discard(step)
            console.say(f"checkpoint {step} was being written when the run ended: it is removed")
            return
        aside = self._places.set_aside(step)
        console.warn(f"checkpoint {step} is DAMAGED: {reason}; it is kept as {aside}, the one before it is used")


class _Write:
    """One checkpoint on its way to the disk: Orbax in its thread, then the manifest in ours."""

    def __init__(
        self,
        checkpointer: ocp.StandardCheckpointer,
        places: CheckpointPlaces,
        state: TrainState,
        facts: dict[str, Any],
        before: int | None,
    ) -> None:
        self.facts, self.before = facts, before
        self._places, self._step, self._checkpointer = places, facts["step"], checkpointer
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._seal, name=f"checkpoint {self._step}")
        try:
            if is_main_process():
                places.begin(self._step)
            checkpointer.save(places.state(self._step), state)
        except Exception as error:
            raise self._explained(error) from error
        self._thread.start()

    def finish(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._explained(self._error) from self._error

    def _seal(self) -> None:
        try:
            self._checkpointer.wait_until_finished()
            if is_main_process():
                self._places.seal(self._step, self.facts)
        except BaseException as error:
            self._error = error

    def _explained(self, error: BaseException) -> BaseException:
        reason = machine_fault(error)
        if reason is None:
            return error
        if is_main_process():
            self._places.abandon(self._step)
        intact = "none was written before" if self.before is None else f"the one of step {self.before} is intact"
        where = self._places.address(self._step)
        return CheckpointError(
            f"{where}: the checkpoint cannot be written ({reason}); {intact}; fix that and run the command again"
        )


def _stored_shapes(checkpointer: ocp.StandardCheckpointer, path: Path) -> dict[str, Any]:
    """The stored state as nested dicts of shapes and types."""
    return checkpointer.metadata(path).item_metadata.tree


def _differences(stored: Any, like: TrainState) -> str:
    """What differs between two states in shapes and types, by name; "" if nothing does."""

    def leaves(tree: Any) -> dict[str, str]:
        named = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
            for path, leaf in named
            if hasattr(leaf, "shape")
        }

    there, here = leaves(stored), leaves(like)
    names = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
    told = [f"{name}: {there.get(name, 'nothing')} there, {here.get(name, 'nothing')} here" for name in names[:3]]
    return "; ".join(told) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")


def load_state(workdir: WorkdirLike, checkpoint: str = "newest") -> tuple[dict[str, Any], int]:
    """A checkpoint of a workdir as nested dicts of arrays on one device, named as in TrainState, and its step.

    checkpoint: "newest" (that is sound), "best" (the highest top-1 of an evaluation) or a step's number.

    Nothing is changed; a run may be writing there, and delete the checkpoint that is being read: then the one that is the newest
    or best by now is taken. Orbax's log is treated as by `Checkpoints`. Raises CheckpointError if there is none.
    """
    places = Workdir.at(workdir).checkpoints
    if not places.exist():
        raise CheckpointError(f"{workdir} holds no checkpoints: give the --workdir of a training run")
    _quiet_orbax()
    for _ in range(MOST_TRIES):
        step: int | None = None
        try:
            step = find_step(workdir, checkpoint)
            return _read(places.state(step)), step
        except Exception as error:  # Orbax, TensorStore and the system have many for files that are gone
            vanished = isinstance(error, FileNotFoundError) if step is None else not places.has(step)
            if not vanished:
                raise
    raise CheckpointError(
        f"{places}: the run that is writing there deleted each checkpoint while it was read; try again, or keep more of them "
        "(config.checkpoint.keep)"
    )


def _read(path: Path) -> dict[str, Any]:
    with ocp.StandardCheckpointer() as checkpointer:
        # The shapes come from the checkpoint itself; one device, whatever mesh it was written on.
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), _stored_shapes(checkpointer, path)
        )
        return checkpointer.restore(path, like)
