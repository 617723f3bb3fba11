"""Checkpoints of the whole train state. The one module that knows Orbax.

WORKDIR/checkpoints holds a folder a step, of Orbax's files and a manifest of them, written last. So a folder is finished or it is
not, and what is finished can be checked; docs/reliability.md tells what becomes of the others.
"""

from __future__ import annotations

import logging
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from deit_jax.errors import machine_fault
from deit_jax.parallel.distributed import from_main_process, is_main_process
from deit_jax.reporting import console
from deit_jax.reporting.metrics import write_json
from deit_jax.training import manifest
from deit_jax.training.checkpoint_folder import (
    FORMAT,
    MOST_TRIES,
    CheckpointError,
    find_step,
    newest_sound,
    say_what_is_not_compared,
    scored_steps,
    steps_in,
)
from deit_jax.training.state import TrainState

_ORBAX = Path(ocp.__file__).parent
_STATE = "default"  # of a step's folder: where Orbax writes
_DISCARDED = ".discarded"  # renamed so before it is deleted, so that half of it is never taken for a checkpoint
_DAMAGED = ".damaged"  # renamed so and left: what to do with it is for the owner to say


def _quiet_orbax() -> None:
    """Leave out what Orbax logs at every save and restore, and what it logs or leaves behind of faults that it raises as well.

    Those come through as exceptions, and so as one line; the same filters a second time change nothing.
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
    """The checkpoints under `workdir`/checkpoints: written in the background, atomically, the newest `keep` and the best kept.

    Opening them removes what a killed run left half-written and renames what is damaged; both are said. A context manager:
    leaving it waits for the last write. All processes of a run make the same calls.

    scored_by: of JSON's types, by which evaluation the run scores its weights (images, crop): only scores of the same one are
    compared, and a line names checkpoints of another.

    Raises CheckpointError if the folder cannot be written.
    """

    def __init__(self, workdir: str | Path, *, keep: int = 2, scored_by: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(workdir).absolute() / "checkpoints"
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
        scored = scored_steps(self.folder, self._sealed(), self._scored_by)[0]
        if self._writing is not None and self._writing.facts["top1"] is not None:
            scored.append((self._writing.facts["top1"], self._writing.facts["step"]))
        return (max(scored)[1], max(scored)[0]) if scored else None

    def would_be_best(self, top1: float) -> bool:
        """Whether no checkpoint has a top-1 as high; the same in all processes."""
        return from_main_process(lambda: (best := self.best()) is None or top1 > best[1])

    def notes(self) -> dict[str, Any]:
        """What `save` was given beside the newest state; {} if there is none."""
        self.wait()
        if self._latest is None:
            return {}
        return from_main_process(lambda: manifest.facts(self.folder / str(self._latest)).get("notes", {}))

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
        self._writing = _Write(self._checkpointer, self.folder / str(step), state, facts, self._latest)
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
            raise CheckpointError(f"{self.folder}: no checkpoint here")
        path = self.folder / str(self._latest) / _STATE
        if differences := _differences(_stored_shapes(self._checkpointer, path), like):
            raise CheckpointError(
                f"{path.parent} does not hold this configuration's state ({differences}); "
                "use another --workdir, or the configuration it was written with"
            )
        return self._checkpointer.restore(path, like)

    def _sealed(self) -> list[int]:
        return [step for step in steps_in(self.folder) if manifest.is_sealed(self.folder / str(step))]

    def _discard_surplus(self) -> None:
        if not is_main_process():
            return
        steps, best = self._sealed(), self.best()
        for step in steps[: -self._keep]:
            if best is None or step != best[0]:
                _discard(self.folder / str(step))

    def _put_in_order(self) -> int | None:
        """Remove what is half-written, rename what is damaged; the newest sound step, or None."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / FORMAT).exists():
                for step in steps_in(self.folder):  # of a version that wrote none; Orbax committed them by renaming
                    if not manifest.is_sealed(self.folder / str(step)):
                        console.say(f"checkpoint {step} is of an earlier version and gets a manifest now")
                        manifest.seal(self.folder / str(step), {"step": step, "top1": None, "notes": {}})
                write_json(self.folder / FORMAT, {"format": 2})
            for path in self.folder.iterdir():
                if path.name.endswith(_DISCARDED):
                    shutil.rmtree(path)
            newest = newest_sound(self.folder, _clear_away)
            say_what_is_not_compared(scored_steps(self.folder, self._sealed(), self._scored_by)[1])
            return newest
        except OSError as error:
            raise CheckpointError(
                f"{self.folder} cannot be used ({error.strerror}); fix that or use another --workdir"
            ) from error


class _Write:
    """One checkpoint on its way to the disk: Orbax in its thread, then the manifest in ours."""

    def __init__(
        self,
        checkpointer: ocp.StandardCheckpointer,
        folder: Path,
        state: TrainState,
        facts: dict[str, Any],
        before: int | None,
    ) -> None:
        self.facts, self.before = facts, before
        self._folder, self._checkpointer = folder, checkpointer
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._seal, name=f"checkpoint {folder.name}")
        try:
            if is_main_process():
                manifest.begin(folder)
            checkpointer.save(folder / _STATE, state)
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
                manifest.seal(self._folder, self.facts)
        except BaseException as error:
            self._error = error

    def _explained(self, error: BaseException) -> BaseException:
        reason = machine_fault(error)
        if reason is None:
            return error
        if is_main_process():
            shutil.rmtree(self._folder, ignore_errors=True)
        intact = "none was written before" if self.before is None else f"the one of step {self.before} is intact"
        return CheckpointError(
            f"{self._folder}: the checkpoint cannot be written ({reason}); {intact}; fix that and run the command again"
        )


def _clear_away(path: Path, reason: str) -> None:
    if manifest.is_unfinished(path) or (not (path / _STATE).exists() and not manifest.is_sealed(path)):
        _discard(path)
        console.say(f"checkpoint {path.name} was being written when the run ended: it is removed")
        return
    aside = path.with_name(path.name + _DAMAGED)
    while aside.exists():
        aside = aside.with_name(aside.name + _DAMAGED)
    path.rename(aside)
    console.warn(f"checkpoint {path.name} is DAMAGED: {reason}; it is kept as {aside.name}, the one before it is used")


def _discard(path: Path) -> None:
    gone = path.with_name(path.name + _DISCARDED)
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone)


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


def load_state(workdir: str | Path, checkpoint: str = "newest") -> tuple[dict[str, Any], int]:
    """A checkpoint of a workdir as nested dicts of arrays on one device, named as in TrainState, and its step.

    checkpoint: "newest" (that is sound), "best" (the highest top-1 of an evaluation) or a step's number.

    Nothing is changed; a run may be writing there, and delete the checkpoint that is being read: then the one that is the newest
    or best by now is taken. Raises CheckpointError if there is none.
    """
    folder = Path(workdir).absolute() / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(f"{workdir} holds no checkpoints: give the --workdir of a training run")
    _quiet_orbax()
    for _ in range(MOST_TRIES):
        step: int | None = None
        try:
            step = find_step(folder, checkpoint)
            return _read(folder / str(step) / _STATE), step
        except Exception as error:  # Orbax, TensorStore and the system have many for files that are gone
            vanished = isinstance(error, FileNotFoundError) if step is None else not (folder / str(step)).is_dir()
            if not vanished:
                raise
    raise CheckpointError(
        f"{folder}: the run that is writing there deleted each checkpoint while it was read; try again, or keep more of them "
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
