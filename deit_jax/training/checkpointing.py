"""Checkpoints of the whole train state. The one module that knows Orbax."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from deit_jax.errors import UserError
from deit_jax.training.state import TrainState, Variables


class CheckpointError(UserError):
    """A checkpoint that is not there or does not fit. The message is one line."""


class Checkpoints:
    """The checkpoints under `workdir`/checkpoints: written in the background, atomically, the newest `keep` kept.

    A context manager: leaving it waits for the last write.
    """

    def __init__(self, workdir: str | Path, *, keep: int = 2) -> None:
        self.folder = Path(workdir).absolute() / "checkpoints"
        # Orbax tells the root logger at every save and restore; its errors still come through as exceptions.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._manager = ocp.CheckpointManager(
            self.folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Start writing `state` under its step; a step that is already there is left as it is."""
        step = int(state.step)
        if step != self.latest_step():
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, like: TrainState) -> TrainState:
        """The newest state, with the shapes, types and shardings of the abstract state `like`.

        Raises CheckpointError if there is none, or if it is another model's.
        """
        step = self.latest_step()
        if step is None:
            raise CheckpointError(f"{self.folder}: no checkpoint here")
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(like))
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise CheckpointError(
                f"{self.folder}/{step} does not hold this configuration's state ({reason}); "
                "use another --workdir, or the configuration it was written with"
            ) from error


def load_state(workdir: str | Path) -> tuple[dict[str, Any], int]:
    """The newest checkpoint of a workdir as nested dicts of arrays on one device, named as in TrainState, and its step.

    Raises CheckpointError if there is none.
    """
    folder = Path(workdir).absolute() / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(f"{workdir} holds no checkpoints: give the --workdir of a training run")
    with ocp.CheckpointManager(folder, item_handlers=ocp.StandardCheckpointHandler()) as manager:
        step = manager.latest_step()
        if step is None:
            raise CheckpointError(f"{folder}: no complete checkpoint here; let the training run save one")
        # The shapes come from the checkpoint itself; one device, whatever mesh it was written on.
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), manager.item_metadata(step).tree
        )
        return manager.restore(step, args=ocp.args.StandardRestore(like)), step


def load_variables(workdir: str | Path, which: str = "raw") -> tuple[Variables, int]:
    """The trained weights of a workdir, as numpy arrays for model.apply, and their step.

    which: "raw" or "ema". Raises CheckpointError if there is no checkpoint, or no EMA in it.
    """
    state, step = load_state(workdir)
    variables = state if which == "raw" else state.get("ema")
    if variables is None:
        raise CheckpointError(f"{workdir}, step {step}, holds no moving average (ema.decay was 0): ask for raw weights")
    variables = {"params": variables["params"], "batch_stats": variables.get("batch_stats") or {}}
    return jax.tree.map(np.asarray, variables), step
