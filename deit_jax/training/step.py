"""One training step: augment, run the teacher, differentiate, update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax.sharding import Mesh

from deit_jax.augment.pipeline import TrainAugmentation
from deit_jax.models.layers import RNG_NAME
from deit_jax.models.protocol import Features, train_outputs
from deit_jax.parallel.mesh import BATCH_AXES
from deit_jax.parallel.scopes import Scope
from deit_jax.parallel.sharding import GatherOnce, split_microbatch_rows, split_rows
from deit_jax.training.features import FeatureMatching
from deit_jax.training.losses import Loss, Metrics
from deit_jax.training.schedules import Schedule
from deit_jax.training.state import TrainState, Variables, split_projections
from deit_jax.training.teacher import FrozenTeacher

Batch = dict[str, jax.Array]  # "image": uint8[B, H, W, 3], "label": int32[B]
# images float[B, H, W, 3], targets float32[B, K], positions in the global batch int32[B], and possibly recorded answers
Rows = tuple[Any, ...]
# From such rows, what the loss takes besides the targets: the teacher's logits float32[B, K], its decisions int32[B], or None;
# and the teacher's features
Taught = Callable[[Rows], tuple[jax.Array | None, Features]]
TrainStep = Callable[[TrainState, FrozenTeacher | None, Batch], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class Training:
    """Everything that a training step depends on, except the mesh.

    Without `train_mode` the student runs as in evaluation: nothing is dropped, and BatchNorm uses its running statistics, which
    do not change. With `skip_nonfinite`, a step whose loss or gradient norm is not finite advances only the step counters of
    the state and the schedule.
    """

    model: nn.Module
    augment: TrainAugmentation
    loss: Loss
    optimizer: optax.GradientTransformation
    schedule: Schedule  # the one in the optimizer; the step only logs it
    seed: int
    ema_decay: float = 0.0
    accumulation_steps: int = 1  # number of microbatches that a batch is split into
    skip_nonfinite: bool = False
    train_mode: bool = True
    trained: Any | None = None  # a tree of bools like the parameters: True where differentiated; None: all
    features: FeatureMatching | None = None  # adds its loss; None: no features
    gather_once: GatherOnce | None = None  # None: the compiler decides when split parameters are gathered


def make_train_step(training: Training, mesh: Mesh, *, deal: Callable[[Batch], Batch] | None = None) -> TrainStep:
    """Returns the pure function (state, teacher, batch) -> (state, metrics), to be jitted with the state donated.

    `teacher` is the frozen teacher or None; it sees the same augmented images as the student. All randomness derives from the
    seed, the step, and an image's position in the global batch. Metrics are float32 scalars: those of the loss, the gradient's
    global norm before clipping, the learning rate, and for divergence.py the index of the parameter with the largest gradient
    (in tree order) and the number of parameters whose gradients are not finite.

    mesh: the mesh to compile for. deal: moves the rows of a batch into their mixing groups (rows that share a mixup or
    CutMix draw, see parallel/host_rows.py); None: the hosts have done this while reading.
    """

    def train_step(state: TrainState, teacher: FrozenTeacher | None, batch: Batch) -> tuple[TrainState, Metrics]:
        augment_key, dropout_key = step_keys(training.seed, state.step)
        images, targets = augmented(training.augment, mesh, deal, augment_key, batch)
        rows = (images, targets, jnp.arange(images.shape[0]))

        def taught(rows: Rows) -> tuple[jax.Array | None, Features]:
            if teacher is None:
                return None, {}
            if training.features is None:
                return teacher.logits(rows[0]), {}
            logits, features = teacher.logits_and_features(rows[0], training.features.of_teacher)
            return None if training.features.alone else logits, features

        return updated(training, mesh, state, dropout_key, rows, taught)

    return train_step


def make_augment_step(
    augment: TrainAugmentation, seed: int, mesh: Mesh, *, deal: Callable[[Batch], Batch] | None = None
) -> Callable[[jax.Array, Batch], tuple[jax.Array, jax.Array]]:
    """Returns the pure function (step, batch) -> (images, targets), the first part of a step. See `make_train_step`."""

    def augment_step(step: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        augment_key, _ = step_keys(seed, step)
        return augmented(augment, mesh, deal, augment_key, batch)

    return augment_step


def make_update_step(
    training: Training, mesh: Mesh, restored: Callable[[Any], jax.Array]
) -> Callable[[TrainState, jax.Array, jax.Array, Any], tuple[TrainState, Metrics]]:
    """Returns the pure function (state, images, targets, answers) -> (state, metrics), the second part of a step.

    restored: converts the answers for a microbatch to what the loss takes in place of the teacher's logits. answers: a tree of
    arrays [B, ...].
    """

    def update_step(
        state: TrainState, images: jax.Array, targets: jax.Array, answers: Any
    ) -> tuple[TrainState, Metrics]:
        _, dropout_key = step_keys(training.seed, state.step)
        rows = (images, targets, jnp.arange(images.shape[0]), answers)
        return updated(training, mesh, state, dropout_key, rows, lambda rows: (restored(rows[3]), {}))

    return update_step


def augmented(
    augment: TrainAugmentation, mesh: Mesh, deal: Callable[[Batch], Batch] | None, key: jax.Array, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """Returns the images float32[B, H, W, 3] and targets float32[B, K] of a batch: the first part of a step."""
    with jax.named_scope(Scope.AUGMENTATION):
        if deal is not None:
            batch = deal(batch)
        return augment(key, batch["image"], batch["label"], mesh=mesh, axis=BATCH_AXES)


def updated(
    training: Training, mesh: Mesh, state: TrainState, dropout_key: jax.Array, rows: Rows, taught: Taught
) -> tuple[TrainState, Metrics]:
    """Returns the new state and the metrics: the second part of a step. `taught` is called for each microbatch."""

    def gradients(batch_stats: Any, rows: Rows) -> tuple[Any, Any, Metrics]:
        images, targets, positions = rows[:3]
        # Outside the differentiated function, so that the backward pass keeps no activations of the teacher.
        with jax.named_scope(Scope.TEACHER):
            teacher_logits, teacher_features = taught(rows)
        matching = training.features

        def loss_of(trained: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
            params, projections = (trained, {}) if matching is None else split_projections(trained)
            outputs, updates = train_outputs(
                training.model,
                {"params": differentiated(params, training.trained), "batch_stats": batch_stats},
                images,
                train=training.train_mode,
                positions=positions,
                rngs={RNG_NAME: dropout_key},
                features=() if matching is None else matching.of_student,
            )
            # Otherwise XLA shards the logits by class, like a sharded head, and adds many small collectives.
            outputs = jax.lax.with_sharding_constraint(outputs, split_rows(mesh))
            with jax.named_scope(Scope.LOSS):
                value, metrics = training.loss(outputs, targets, teacher_logits)
                if matching is not None:
                    assert projections is not None
                    features = (updates["features"], teacher_features)
                    features = jax.lax.with_sharding_constraint(features, split_rows(mesh))
                    added, of_features = matching(projections, *features)
                    value = value + added
                    metrics = {**metrics, **of_features, "loss": value}
            return value, (updates.get("batch_stats", {}), metrics)

        (_, (batch_stats, metrics)), grads = jax.value_and_grad(loss_of, has_aux=True)(whole)
        if training.gather_once is not None:
            grads = training.gather_once.scattered(grads, state.trained)
        return batch_stats, grads, metrics

    whole = state.trained if training.gather_once is None else training.gather_once.gathered(state.trained)
    if training.accumulation_steps == 1:
        batch_stats, grads, metrics = gradients(state.batch_stats, rows)
    else:
        microbatches = split_microbatches(rows, training.accumulation_steps, mesh)
        batch_stats, grads, metrics = mean_over_microbatches(gradients, state.batch_stats, microbatches)

    with jax.named_scope(Scope.OPTIMIZER):
        updates, opt_state = training.optimizer.update(grads, state.opt_state, state.trained)
        new_state = state.with_trained(optax.apply_updates(state.trained, updates))
    params, ema = new_state.params, state.ema
    if ema is not None:
        with jax.named_scope(Scope.EMA):
            ema = moving_average(training, ema, {"params": params, "batch_stats": batch_stats})
    with jax.named_scope(Scope.METRICS):
        metrics |= {"grad_norm": optax.tree.norm(grads), "learning_rate": training.schedule(state.step)}
        metrics |= gradient_health(grads)
    new_state = dataclasses.replace(
        new_state, step=state.step + 1, batch_stats=batch_stats, opt_state=opt_state, ema=ema
    )
    if training.skip_nonfinite:
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        new_state = only_if(finite, new_state, state)
    return new_state, metrics


def differentiated(params: Any, trained: Any | None) -> Any:
    """Returns `params`, with those that are not `trained` as constants: XLA computes no gradient for them."""
    if trained is None:
        return params
    return jax.tree.map(lambda train, leaf: leaf if train else jax.lax.stop_gradient(leaf), trained, params)


def moving_average(training: Training, ema: Variables, now: Variables) -> Variables:
    """Returns the moving average after a step that ends with the variables `now`. Copies frozen leaves without rounding."""
    average = optax.incremental_update(now, ema, 1.0 - training.ema_decay)
    if training.trained is not None:
        average["params"] = jax.tree.map(
            lambda train, new, old: new if train else old, training.trained, average["params"], ema["params"]
        )
    if not training.train_mode:  # BatchNorm's statistics do not change either
        average["batch_stats"] = ema["batch_stats"]
    return average


def gradient_health(grads: Any) -> Metrics:
    """Returns the index of the leaf with the largest gradient (a non-finite one first) and the number of non-finite leaves."""
    squares = jnp.stack([jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(grads)])
    finite = jnp.isfinite(squares)
    return {
        "worst_gradient": jnp.argmax(jnp.where(finite, squares, jnp.inf)).astype(jnp.float32),
        "nonfinite_gradients": jnp.sum(~finite).astype(jnp.float32),
    }


def only_if(condition: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """Returns `new` if `condition`, a bool scalar, else `old`. The step and the schedule's count always come from `new`."""

    def choose(new: Any, old: Any) -> Any:
        if isinstance(new, optax.ScaleByScheduleState):
            return new
        return jnp.where(condition, new, old)

    chosen = jax.tree.map(choose, new, old, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState))
    return chosen.replace(step=new.step)


def step_keys(seed: int, step: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Returns the keys of a step (counted from 0): one for augmentation, one for dropout and stochastic depth."""
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return augment_key, dropout_key


def split_microbatches(batch: Rows, count: int, mesh: Mesh) -> Rows:
    """Splits arrays [B, ...] into [count, B / count, ...] without moving rows between devices."""

    def split(x: jax.Array) -> jax.Array:
        x = rearrange(x, "(device micro row) ... -> micro (device row) ...", device=mesh.size, micro=count)
        return jax.lax.with_sharding_constraint(x, split_microbatch_rows(mesh))

    return jax.tree.map(split, batch)


def mean_over_microbatches(
    gradients: Callable[[Any, Any], tuple[Any, Any, Metrics]], batch_stats: Any, microbatches: Rows
) -> tuple[Any, Any, Metrics]:
    """Scans `gradients` over the microbatches; returns the last BatchNorm statistics, the mean gradients and the mean metrics."""
    count = microbatches[0].shape[0]
    _, grads, metrics = jax.eval_shape(gradients, batch_stats, jax.tree.map(lambda x: x[0], microbatches))
    totals = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, metrics))

    def body(carry: tuple[Any, Any], microbatch: Rows) -> tuple[tuple[Any, Any], None]:
        batch_stats, totals = carry
        batch_stats, *results = gradients(batch_stats, microbatch)
        return (batch_stats, jax.tree.map(jnp.add, totals, tuple(results))), None

    (batch_stats, totals), _ = jax.lax.scan(body, (batch_stats, totals), microbatches)
    return batch_stats, *jax.tree.map(lambda x: x / count, totals)
