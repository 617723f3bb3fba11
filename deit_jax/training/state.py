"""The state of a training run."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from deit_jax.models.protocol import initial_variables

Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...} for model.apply
PROJECTIONS = "feature_projections"  # the first part of the projections' names


@flax.struct.dataclass
class TrainState:
    """Plain pytrees. Random keys and the data position derive from the step; the teacher is not part of the state."""

    step: jax.Array  # int32 scalar: steps done
    params: Any
    batch_stats: Any  # BatchNorm's running statistics; {} for a transformer
    opt_state: Any
    ema: Variables | None  # moving average of params and batch_stats; None when off

    @property
    def trained(self) -> Any:
        """What the optimizer updates: the parameters and, with features, the projections under `PROJECTIONS`."""
        return self.params

    def with_trained(self, trained: Any) -> TrainState:
        """Returns a copy with a tree like `trained` in place of it."""
        return dataclasses.replace(self, params=trained)

    @property
    def variables(self) -> Variables:
        """The raw weights, for model.apply."""
        return {"params": self.params, "batch_stats": self.batch_stats}


@flax.struct.dataclass
class FeatureTrainState(TrainState):
    """The state of a run with features. A class of its own, because Orbax would store a field that is None in other runs."""

    projections: Any  # of the student's features, see training/features.py

    @property
    def trained(self) -> Any:
        return {**self.params, PROJECTIONS: self.projections}

    def with_trained(self, trained: Any) -> FeatureTrainState:
        params, projections = split_projections(trained)
        return dataclasses.replace(self, params=params, projections=projections)


def split_projections(trained: Any) -> tuple[Any, Any]:
    """Returns parameters and projections of a tree like `FeatureTrainState.trained`."""
    return {name: tree for name, tree in trained.items() if name != PROJECTIONS}, trained[PROJECTIONS]


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: jax.Array | int,
    image_size: int,
    ema: bool,
    projections: Any = None,
) -> TrainState:
    """Returns the state before the first step. Jit it with out_shardings to create every leaf on its devices."""
    image = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
    return state_of(initial_variables(model, jax.random.key(seed), image), optimizer, ema, projections)


def state_of(
    variables: Variables, optimizer: optax.GradientTransformation, ema: bool, projections: Any = None
) -> TrainState:
    """Returns the state before the first step from these weights: a new optimizer state, and a copy as moving average."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    fields = dict(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=None,
        # Copies: two leaves of a donated state must not share a buffer.
        ema=jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if ema else None,
    )
    state = TrainState(**fields) if projections is None else FeatureTrainState(**fields, projections=projections)
    return dataclasses.replace(state, opt_state=optimizer.init(state.trained))


def count_parameters(variables: Variables) -> int:
    """Returns the number of parameters, without BatchNorm's statistics."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
