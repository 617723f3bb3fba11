"""Saves and restores checkpoints of the train state. The only module that uses Orbax.

docs/reliability.md describes what happens to damaged and unfinished checkpoints.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp

from deit_jax import console
from deit_jax.errors import UserError, machine_fault, require_choice
from deit_jax.parallel.distributed import from_main_process, is_main_process
from deit_jax.storage.checkpoints import CheckpointPlaces
from deit_jax.storage.files import disk_faults
from deit_jax.storage.workdir import Workdir, WorkdirLike
from deit_jax.training.checkpoint_folder import (
    MAX_READ_ATTEMPTS,
    CheckpointError,
    find_step,
    newest_sound,
    report_not_compared,
    scored_steps,
)
from deit_jax.training.state import TrainState, Variables
from deit_jax.weights.errors import unusable_values

_ORBAX = Path(ocp.__file__).parent


def _quiet_orbax() -> None:
    """Silences Orbax's log of each save and restore, and its log of errors that it also raises.

    The filters stay for the process, since Orbax's tasks can fail after the call that started them. Other code's records pass.
    Calling this again has no effect.
    """
    logging.getLogger("absl").addFilter(_should_log)
    logging.getLogger("asyncio").addFilter(_is_not_orbax)
    if sys.unraisablehook is not _report_unraisable:
        global _previous_hook
        _previous_hook, sys.unraisablehook = sys.unraisablehook, _report_unraisable


_previous_hook: Callable[[Any], None] = sys.__unraisablehook__


def _should_log(record: logging.LogRecord) -> bool:
    if not Path(record.pathname).is_relative_to(_ORBAX):
        return True
    raised = record.exc_info is not None or machine_fault(RuntimeError(record.getMessage())) is not None
    return record.levelno >= logging.ERROR and not raised


def _is_not_orbax(record: logging.LogRecord) -> bool:
    message = record.getMessage()  # names the failed task, or for gathered ones only their error
    return str(_ORBAX) not in message and not ("never retrieved" in message and machine_fault(RuntimeError(message)))


def _report_unraisable(unraisable: Any) -> None:
    # TensorStore's writes may end after Orbax has failed on a full disk.
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
        _previous_hook(unraisable)


class Checkpoints:
    """Writes checkpoints of a workdir in the background, atomically; keeps the newest `keep` and the best.

    Opening them removes unfinished checkpoints and renames damaged ones, and reports both. A context manager, which waits for the
    last write on exit. All processes of a run make the same calls. Silences Orbax's log, see `_quiet_orbax`.

    scored_by: how the run scores its weights (images, crop), of JSON types. Only scores of the same evaluation are compared; a
    line reports the others.

    Raises CheckpointError if the folder cannot be written; like the methods, in a bucket also BucketError and LostLockError.
    """

    def __init__(self, workdir: WorkdirLike, *, keep: int = 2, scored_by: Mapping[str, Any] | None = None) -> None:
        self._places = Workdir.at(workdir).checkpoints
        self._places.check_writers(jax.process_count())
        self._keep = keep
        self._scored_by = None if scored_by is None else dict(scored_by)
        _quiet_orbax()
        self._latest: int | None = from_main_process(self._clean_up)
        self._checkpointer = ocp.StandardCheckpointer()
        self._writing: Future[None] | None = None
        self._facts: dict[str, Any] = {}  # facts about the checkpoint being written
        self._before: int | None = None  # the newest step before it

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and jax.process_count() > 1:
            return  # finishing needs the other processes, which may be gone
        try:
            self.wait()
            self._discard_surplus()
            with _explained(self._places, self._unwritten):  # from the thread that writes Orbax's metadata
                self._checkpointer.close()
        except UserError as second:
            if error is None:
                raise
            if str(second) != str(error):
                console.warn(str(second))  # the first error is reported by the caller

    def latest_step(self) -> int | None:
        """Returns the step of the newest sound checkpoint, or of the one being written; None if there is none."""
        return self._latest

    def best(self) -> tuple[int, float] | None:
        """Returns (step, top-1) of the checkpoint with the highest top-1 in the run's evaluation; None if there is none."""
        scored = scored_steps(self._places, self._sealed(), self._scored_by)[0]
        if self._writing is not None and self._facts["top1"] is not None:
            scored.append((self._facts["top1"], self._facts["step"]))
        return (max(scored)[1], max(scored)[0]) if scored else None

    def would_be_best(self, top1: float) -> bool:
        """Returns whether all checkpoints have a lower top-1; the same in all processes."""
        return from_main_process(lambda: (best := self.best()) is None or top1 > best[1])

    def notes(self) -> dict[str, Any]:
        """Returns the `notes` of the newest checkpoint; {} if there is none."""
        self.wait()
        latest = self._latest
        if latest is None:
            return {}
        return from_main_process(lambda: self._places.facts(latest).get("notes", {}))

    def save(self, state: TrainState, top1: float | None = None, notes: dict[str, Any] | None = None) -> None:
        """Starts writing `state` as the checkpoint of its step; does nothing if it exists.

        Args:
          state: the whole state.
          top1: of these weights, in percent, if they have been evaluated.
          notes: other information for a resumed run, of JSON types.

        Raises CheckpointError if this write or the one before it fails.
        """
        step = int(state.step)
        if step == self._latest:
            return
        self.wait()
        self._discard_surplus()
        self._facts = {"step": step, "top1": top1, "scored_by": self._scored_by, "notes": notes or {}}
        self._before = self._latest
        with self._writes():
            if is_main_process():
                self._places.begin(step)
            self._checkpointer.save(self._places.new_state(step), state)
        executor = ThreadPoolExecutor(1)
        self._writing = executor.submit(self._seal)
        executor.shutdown(wait=False)
        self._latest = step

    def _seal(self) -> None:
        """Waits for Orbax's thread, then writes the manifest."""
        self._checkpointer.wait_until_finished()
        if is_main_process():
            self._places.seal(self._facts["step"], self._facts)

    def wait(self) -> None:
        """Waits for the last write. Raises CheckpointError if it failed."""
        writing, self._writing = self._writing, None
        if writing is not None:
            with self._writes():
                writing.result()

    @contextlib.contextmanager
    def _writes(self) -> Iterator[None]:
        """Explains a fault of the disk or the bucket; on a disk, removes what was written."""
        try:
            with _explained(self._places, self._unwritten):
                yield
        except UserError as error:
            self._latest = self._before
            if isinstance(error, CheckpointError) and is_main_process():
                self._places.abandon(self._facts["step"])
            raise

    def _unwritten(self, reason: str) -> CheckpointError:
        place = self._places.address(self._facts["step"])
        intact = "there is no earlier one" if self._before is None else f"the one of step {self._before} is intact"
        return CheckpointError(
            f"{place}: the checkpoint cannot be written ({reason}); {intact}; fix that and rerun the command"
        )

    def restore(self, like: TrainState) -> TrainState:
        """Returns the newest state, with the shapes, dtypes and shardings of the abstract state `like`.

        Raises CheckpointError if there is none, if it cannot be read, or, with the names that differ, if it is the state of
        another model.
        """
        self.wait()
        if self._latest is None:
            raise CheckpointError(f"{self._places}: no checkpoint here")
        with _reading(self._places, self._latest) as path:
            if differences := _differences(_stored_shapes(self._checkpointer, path), like):
                raise CheckpointError(
                    f"{self._places.address(self._latest)} does not hold this configuration's state ({differences}); "
                    "use another --workdir, or the configuration that wrote it"
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
                with self._faults(f"the earlier checkpoint of step {step} cannot be removed"):
                    self._places.discard(step)

    def _clean_up(self) -> int | None:
        """Removes unfinished checkpoints, renames damaged ones, and returns the newest sound step, or None."""
        places = self._places
        with self._faults("cannot be used"):
            places.prepare()
            if not places.have_manifests():
                for step in places.steps():  # from a version without manifests; Orbax committed them by renaming
                    if not places.is_sealed(step):
                        console.say(f"checkpoint {step} is from an earlier version and gets a manifest now")
                        places.seal(step, {"step": step, "top1": None, "notes": {}})
                places.mark_manifests()
            newest = newest_sound(places, self._remove)
            report_not_compared(scored_steps(places, self._sealed(), self._scored_by)[1])
            return newest

    def _faults(self, what: str) -> contextlib.AbstractContextManager[None]:
        return disk_faults(
            lambda reason: CheckpointError(f"{self._places}: {what} ({reason}); fix that and rerun the command")
        )

    def _remove(self, step: int, reason: str) -> None:
        if self._places.is_unfinished(step):
            self._places.discard(step)
            console.say(f"checkpoint {step} was being written when the run ended: removed")
            return
        aside = self._places.set_aside(step)
        console.warn(f"checkpoint {step} is DAMAGED: {reason}; renamed to {aside}, using the one before it")


@contextlib.contextmanager
def _explained(places: CheckpointPlaces, explain: Callable[[str], UserError]) -> Iterator[None]:
    """Converts an error of Orbax about the disk into `explain(reason)`, and one about the bucket into that of the bucket."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        try:
            reason = places.fault(error)
        except UserError as fault:  # of a bucket
            raise fault from error
        if reason is None:
            raise
        raise explain(reason) from error


@contextlib.contextmanager
def _reading(places: CheckpointPlaces, step: int) -> Iterator[Path | str]:
    """Gives where Orbax reads the state of a step, and explains its errors."""

    def unread(reason: str) -> CheckpointError:
        return CheckpointError(
            f"{places.address(step)}: the checkpoint cannot be read ({reason}); fix that and rerun the command"
        )

    with _explained(places, unread), places.state(step) as path:
        yield path


def _stored_shapes(checkpointer: ocp.StandardCheckpointer, path: Path | str) -> dict[str, Any]:
    """Returns the stored state as nested dicts of shapes and dtypes."""
    found = checkpointer.metadata(path).item_metadata
    if found is None:  # Orbax drops the error of the disk, which `restore` raises
        checkpointer.restore(path)
        raise CheckpointError(f"{path}: the description of its arrays cannot be read; try again")
    return found.tree


def _differences(stored: Any, like: TrainState) -> str:
    """Returns the differences in shapes and dtypes between two states, by name; "" if there are none."""

    def leaves(tree: Any) -> dict[str, str]:
        named = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
            for path, leaf in named
            if hasattr(leaf, "shape")
        }

    there, here = leaves(stored), leaves(like)
    names = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
    lines = [f"{name}: {there.get(name, 'nothing')} there, {here.get(name, 'nothing')} here" for name in names[:3]]
    return "; ".join(lines) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")


def load_state(workdir: WorkdirLike, checkpoint: str = "newest") -> tuple[dict[str, Any], int]:
    """Returns a checkpoint of a workdir as nested dicts of arrays on one device, named as in TrainState, and its step.

    checkpoint: "newest" (sound), "best" (the highest top-1 of an evaluation) or a step number.

    Changes nothing. If a run deletes the checkpoint while it is read, reads the one that is then the newest or best. Silences
    Orbax's log as `Checkpoints` does. Raises CheckpointError if there is none, or if it cannot be read.
    """
    places = Workdir.at(workdir).checkpoints
    if not places.exist():
        raise CheckpointError(f"{workdir} holds no checkpoints: use the --workdir of a training run")
    _quiet_orbax()
    for _ in range(MAX_READ_ATTEMPTS):
        step: int | None = None
        try:
            step = find_step(workdir, checkpoint)
            with _reading(places, step) as path:
                return _read(path), step
        except Exception as error:  # Orbax, TensorStore and the system raise many types for missing files
            vanished = isinstance(error, FileNotFoundError) if step is None else places.has_vanished(step)
            if not vanished:
                raise
    raise CheckpointError(
        f"{places}: the running training deleted each checkpoint while it was read; try again, or keep more checkpoints "
        "(config.checkpoint.keep)"
    )


def _read(path: Path | str) -> dict[str, Any]:
    with ocp.StandardCheckpointer() as checkpointer:
        # Shapes from the checkpoint; a single device, for any mesh that it was written on.
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), _stored_shapes(checkpointer, path)
        )
        return checkpointer.restore(path, like)


def load_variables(workdir: WorkdirLike, which: str = "raw", checkpoint: str = "newest") -> tuple[Variables, int]:
    """Returns the trained weights of a workdir, as numpy arrays for model.apply, and their step.

    which: "raw" or "ema". checkpoint: see `load_state`. Raises CheckpointError for another `which`, and if there is no
    checkpoint, no EMA in it, or NaN.
    """
    require_choice("which", which, ("raw", "ema"), CheckpointError)
    weights, step = load_weights_of_run(workdir, checkpoint, which)
    if which not in weights:
        raise CheckpointError(f"{workdir}, step {step}, has no moving average (ema.decay was 0): use the raw weights")
    return weights[which], step


def load_weights_of_run(
    workdir: WorkdirLike, checkpoint: str = "newest", which: str | None = None
) -> tuple[dict[str, Variables], int]:
    """Returns {"raw": variables, "ema": variables unless ema.decay was 0} or just `which`, and the step; see `load_variables`."""
    state, step = load_state(workdir, checkpoint)
    weights = {
        name: jax.tree.map(np.asarray, {"params": tree["params"], "batch_stats": tree.get("batch_stats") or {}})
        for name, tree in (("raw", state), ("ema", state.get("ema")))
        if tree is not None and which in (None, name)
    }
    for name, variables in weights.items():
        if fault := unusable_values(flax.traverse_util.flatten_dict(variables, sep="/")):
            raise CheckpointError(
                f"{workdir}, step {step}: the {name} weights contain values that make every answer NaN: {fault}; use another "
                "checkpoint (--checkpoint=STEP)"
            )
    return weights, step
