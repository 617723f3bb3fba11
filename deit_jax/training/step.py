"""One training step: augment, ask the teacher, differentiate, update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax.sharding import Mesh

from deit_jax.augment.pipeline import TrainAugmentation
from deit_jax.models.dropping import RNG_NAME
from deit_jax.models.protocol import train_outputs
from deit_jax.parallel.mesh import BATCH_AXES
from deit_jax.parallel.sharding import split_microbatch_rows, split_rows
from deit_jax.training.losses import Loss, Metrics
from deit_jax.training.schedules import Schedule
from deit_jax.training.state import TrainState, Variables
from deit_jax.training.teacher import FrozenTeacher

Batch = dict[str, jax.Array]  # "image": uint8[B, H, W, 3], "label": int32[B]
TrainStep = Callable[[TrainState, FrozenTeacher | None, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    model: nn.Module,
    *,
    augment: TrainAugmentation,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    seed: int,
    mesh: Mesh,
    ema_decay: float = 0.0,
    accumulation_steps: int = 1,
    skip_nonfinite: bool = False,
    train_mode: bool = True,
    trained: Any | None = None,
    deal: Callable[[Batch], Batch] | None = None,
) -> TrainStep:
    """The pure function (state, teacher, batch) -> (state, metrics), to be jitted with the state donated.

    `teacher` is the frozen teacher, or None without one; it sees the very images the student sees. All randomness comes from
    `seed`, the step, and an image's position in the global batch. Metrics are float32 scalars: those of the loss, the
    gradient's global norm before clipping, the learning rate, and for divergence.py the number of the parameter with the largest
    gradient (in the order of the tree) and of those whose gradients are not finite. With `skip_nonfinite` a step whose loss or
    gradient norm is not finite leaves all but the step's number, and the schedule's, as it was.

    Without `train_mode` the student computes as in evaluation: nothing is dropped, BatchNorm normalises by its running
    statistics, which stay as they are. `trained`, a tree of bools like the parameters, says which of them are differentiated, of
    the others no gradient is computed; None: all. `deal` puts the rows of a batch into their mixing groups; None: they lie there.
    """

    def moving_average(ema: Variables, now: Variables) -> Variables:
        average = optax.incremental_update(now, ema, 1.0 - ema_decay)
        if trained is not None:  # the average of what never moves is what it is, without the rounding
            average["params"] = jax.tree.map(
                lambda moves, new, old: new if moves else old, trained, average["params"], ema["params"]
            )
        if not train_mode:  # so are BatchNorm's statistics
            average["batch_stats"] = ema["batch_stats"]
        return average

    def train_step(state: TrainState, teacher: FrozenTeacher | None, batch: Batch) -> tuple[TrainState, Metrics]:
        augment_key, dropout_key = step_keys(seed, state.step)
        if deal is not None:
            batch = deal(batch)
        images, targets = augment(augment_key, batch["image"], batch["label"], mesh=mesh, axis=BATCH_AXES)
        positions = jnp.arange(images.shape[0])

        def gradients(batch_stats: Any, microbatch: tuple[jax.Array, ...]) -> tuple[Any, Any, Metrics]:
            images, targets, positions = microbatch
            # Outside the differentiated function, so nothing of the teacher is kept for the backward pass.
            teacher_logits = None if teacher is None else teacher.logits(images)

            def loss_of(params: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
                if trained is not None:
                    params = jax.tree.map(
                        lambda moves, leaf: leaf if moves else jax.lax.stop_gradient(leaf), trained, params
                    )
                outputs, updates = train_outputs(
                    model,
                    {"params": params, "batch_stats": batch_stats},
                    images,
                    train=train_mode,
                    positions=positions,
                    rngs={RNG_NAME: dropout_key},
                )
                # Said, because XLA would rather split a split head's classes, and exchange logits in many small steps.
                outputs = jax.lax.with_sharding_constraint(outputs, split_rows(mesh))
                value, metrics = loss(outputs, targets, teacher_logits)
                return value, (updates.get("batch_stats", {}), metrics)

            (_, (batch_stats, metrics)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
            return batch_stats, grads, metrics

        if accumulation_steps == 1:
            batch_stats, grads, metrics = gradients(state.batch_stats, (images, targets, positions))
        else:
            microbatches = split_microbatches((images, targets, positions), accumulation_steps, mesh)
            batch_stats, grads, metrics = mean_over_microbatches(gradients, state.batch_stats, microbatches)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = moving_average(ema, {"params": params, "batch_stats": batch_stats})
        metrics |= {"grad_norm": optax.tree.norm(grads), "learning_rate": schedule(state.step)} | gradient_health(grads)
        new_state = TrainState(
            step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, ema=ema
        )
        if skip_nonfinite:
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
            new_state = only_if(finite, new_state, state)
        return new_state, metrics

    return train_step


def gradient_health(grads: Any) -> Metrics:
    """Which leaf has the largest gradient, one that is not finite above all, and how many are not finite: float32 scalars."""
    squares = jnp.stack([jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(grads)])
    finite = jnp.isfinite(squares)
    return {
        "worst_gradient": jnp.argmax(jnp.where(finite, squares, jnp.inf)).astype(jnp.float32),
        "nonfinite_gradients": jnp.sum(~finite).astype(jnp.float32),
    }


def only_if(condition: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """`new` where a bool scalar holds, else `old`, but for the step and the schedule's clock, which always advance."""

    def choose(new: Any, old: Any) -> Any:
        if isinstance(new, optax.ScaleByScheduleState):
            return new
        return jnp.where(condition, new, old)

    chosen = jax.tree.map(choose, new, old, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState))
    return chosen.replace(step=new.step)


def step_keys(seed: int, step: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """The keys of a step, counted from 0: of the augmentation, and of dropout and stochastic depth."""
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return augment_key, dropout_key


def split_microbatches(batch: tuple[jax.Array, ...], count: int, mesh: Mesh) -> tuple[jax.Array, ...]:
    """Arrays [B, ...] to [count, B / count, ...] such that every device's rows stay on it."""

    def split(x: jax.Array) -> jax.Array:
        x = rearrange(x, "(device micro row) ... -> micro (device row) ...", device=mesh.size, micro=count)
        return jax.lax.with_sharding_constraint(x, split_microbatch_rows(mesh))

    return tuple(split(x) for x in batch)


def mean_over_microbatches(
    gradients: Callable[[Any, Any], tuple[Any, Any, Metrics]], batch_stats: Any, microbatches: tuple[jax.Array, ...]
) -> tuple[Any, Any, Metrics]:
    """`gradients` over the microbatches in turn: the last BatchNorm statistics, the mean gradients and the mean metrics."""
    count = microbatches[0].shape[0]
    _, grads, metrics = jax.eval_shape(gradients, batch_stats, jax.tree.map(lambda x: x[0], microbatches))
    totals = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, metrics))

    def body(carry: tuple[Any, Any], microbatch: tuple[jax.Array, ...]) -> tuple[tuple[Any, Any], None]:
        batch_stats, totals = carry
        batch_stats, *results = gradients(batch_stats, microbatch)
        return (batch_stats, jax.tree.map(jnp.add, totals, tuple(results))), None

    (batch_stats, totals), _ = jax.lax.scan(body, (batch_stats, totals), microbatches)
    return batch_stats, *jax.tree.map(lambda x: x / count, totals)
