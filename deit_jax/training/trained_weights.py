"""The weights of a run, from its checkpoints."""

from __future__ import annotations

from pathlib import Path

import flax.traverse_util
import jax
import numpy as np

from deit_jax.training.checkpoint_folder import CheckpointError
from deit_jax.training.checkpointing import load_state
from deit_jax.training.state import Variables
from deit_jax.weights.errors import unusable_values


def load_variables(workdir: str | Path, which: str = "raw", checkpoint: str = "newest") -> tuple[Variables, int]:
    """The trained weights of a workdir, as numpy arrays for model.apply, and their step.

    which: "raw" or "ema"; checkpoint as of `load_state`. Raises CheckpointError if there is no checkpoint, no EMA in it, or NaN.
    """
    weights, step = load_weights_of_run(workdir, checkpoint, which)
    if which not in weights:
        raise CheckpointError(f"{workdir}, step {step}, holds no moving average (ema.decay was 0): ask for raw weights")
    return weights[which], step


def load_weights_of_run(
    workdir: str | Path, checkpoint: str = "newest", which: str | None = None
) -> tuple[dict[str, Variables], int]:
    """{"raw": variables, and unless ema.decay was 0 "ema": variables} of a workdir, or `which` alone; see `load_variables`."""
    state, step = load_state(workdir, checkpoint)
    weights = {
        name: jax.tree.map(np.asarray, {"params": tree["params"], "batch_stats": tree.get("batch_stats") or {}})
        for name, tree in (("raw", state), ("ema", state.get("ema")))
        if tree is not None and which in (None, name)
    }
    for name, variables in weights.items():
        if found := unusable_values(flax.traverse_util.flatten_dict(variables, sep="/")):
            raise CheckpointError(
                f"{workdir}, step {step}: the {name} weights hold values that make every answer NaN: {found}; take another "
                "checkpoint (--checkpoint=STEP)"
            )
    return weights, step
