"""The compiled part of a run: model, optimizer, initial state and train step for a configuration, a plan and a mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.answers.decisions import target_classes
from deit_jax.answers.kinds import AnswerKind, needs_decisions
from deit_jax.augment.pipeline import TrainAugmentation
from deit_jax.config import ConfigError
from deit_jax.config_model import check_heads, check_model, module_options
from deit_jax.config_record import recorded_config
from deit_jax.data.joint_order import JointOrder
from deit_jax.data.sampling import batch_of_larger_groups
from deit_jax.models import create_model
from deit_jax.models.attention import ATTENTIONS, FUSED, Choice
from deit_jax.models.protocol import attention_on, check_outputs, check_training, is_from_outside, on_mesh
from deit_jax.parallel.host_rows import HostRows, deal_on_devices, gathers_rows, host_rows
from deit_jax.parallel.sharding import GatherOnce, replicated, split_rows, state_sharding
from deit_jax.parallel.xla_options import xla_options
from deit_jax.training.features import FeatureMatching, build_matching
from deit_jax.training.losses import DistillationLoss, Loss, build_loss
from deit_jax.training.optimizer import make_optimizer, parameter_name, parameter_names, trained
from deit_jax.training.plan import Plan
from deit_jax.training.schedules import Schedule, cosine_schedule
from deit_jax.training.state import PROJECTIONS, TrainState, Variables, init_state, state_of
from deit_jax.training.step import Batch, Training, TrainStep, make_augment_step, make_train_step, make_update_step
from deit_jax.training.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class Initial:
    """Weights that a new run starts from."""

    variables: Variables  # with the student's shapes
    description: str  # for users: where they come from and what was changed
    digest: str = ""  # digest of the loaded part, recorded in the workdir


@dataclasses.dataclass(frozen=True)
class Asking:
    """The compiled functions around a teacher whose answers are recorded; the same ones whoever learns from them."""

    augment: Any  # (step int32[], counted from 0, batch) -> (images float32[B, S, S, 3], targets float32[B, K])
    select: Any  # logits float32[B, K] -> the answers that are kept of them
    classes: Any  # targets float32[B, K] -> int32[B], see `target_classes`
    host_rows: HostRows  # what this process reads of a batch
    mesh: Mesh


@dataclasses.dataclass(frozen=True)
class Program:
    """The result of `build_program`. `abstract_state` has the shapes, dtypes and shardings that restoring or compiling needs."""

    model: nn.Module
    abstract_state: TrainState
    train_step: TrainStep  # jitted, the state donated
    host_rows: HostRows  # the rows of a training batch that this process reads
    mesh: Mesh
    seed: int
    asking: Asking | None  # of a run whose teacher's answers are, or were, recorded: it takes the place of `train_step`
    update_step: (
        Any  # (state, images, targets, answers) -> (state, metrics), jitted, the state donated; None without `asking`
    )
    features: FeatureMatching | None
    _init: Any
    _start: Any
    attention: Choice | None = None  # what computes the model's attention; None: the model does not say

    def init(self, variables: Variables | None = None) -> TrainState:
        """Returns the state before the first step, created on the mesh: random, or from `variables`, which are not modified.

        variables: arrays with the student's shapes in host memory, the same in all processes.
        """
        if variables is None:
            return self._init(self.seed)
        like = self.abstract_state.variables

        def place(leaf: jax.ShapeDtypeStruct, value: Any) -> jax.Array:
            value = np.asarray(value, leaf.dtype)
            return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])

        return self._start(jax.tree.map(place, like, {name: variables.get(name) or {} for name in like}))


def build_model(config: ConfigDict, *, num_classes: int, image_size: int, compute_dtype: str) -> nn.Module:
    """Builds the configured model. Raises ConfigError for an unknown name or field, or an option that the model lacks."""
    check_model(config)
    return _build_model(config, num_classes, image_size, compute_dtype)


def build_recorded_model(record: dict[str, Any], image_size: int | None = None) -> nn.Module:
    """Builds the model of a workdir from the result of `read_config`. Ignores options that the model does not have.

    image_size: pixels; None: as trained.
    """
    resolved = record["resolved"]
    config = recorded_config(record)
    size = image_size or resolved["image_size"]
    return _build_model(config, resolved["num_classes"], size, resolved["compute_dtype"])


def _build_model(config: ConfigDict, num_classes: int, image_size: int, compute_dtype: str) -> nn.Module:
    fields = module_options(config)
    try:
        model = create_model(config.model.name, num_classes, image_size, dtype=jnp.dtype(compute_dtype), **fields)
    except ValueError as error:
        raise ConfigError(f"config.model: {error}") from error
    check_outputs(model, image_size)
    return model


def build_augmentation(config: ConfigDict, plan: Plan) -> TrainAugmentation:
    """Builds the augmentation that runs on the devices. Raises ConfigError for invalid values."""
    try:
        return TrainAugmentation.from_section(
            config.augment,
            num_classes=plan.num_classes,
            group_size=plan.order.group_size,
            unlabelled=plan.unlabelled is not None,
        )
    except ValueError as error:
        raise ConfigError(f"config.{error}") from error


def build_asking(config: ConfigDict, plan: Plan, mesh: Mesh, kind: AnswerKind) -> Asking:
    """Builds what recording a teacher's answers compiles, apart from the teacher. Raises ConfigError if that is impossible."""
    _check_batch(config, mesh)
    return _asking(config, plan, mesh, kind, *_rows_of_process(plan, mesh))


def _asking(
    config: ConfigDict, plan: Plan, mesh: Mesh, kind: AnswerKind, rows: HostRows, deal: Callable[[Batch], Batch] | None
) -> Asking:
    options, split = xla_options(mesh, config.parallel.xla_options), split_rows(mesh)
    augment = make_augment_step(build_augmentation(config, plan), config.seed, mesh, deal=deal)
    classes = functools.partial(target_classes, label_smoothing=config.augment.label_smoothing)
    return Asking(
        augment=jax.jit(augment, in_shardings=(replicated(mesh), split), out_shardings=split, compiler_options=options),
        select=jax.jit(kind.of_logits, in_shardings=split, out_shardings=split, compiler_options=options),
        classes=jax.jit(classes, in_shardings=split, out_shardings=split, compiler_options=options),
        host_rows=rows,
        mesh=mesh,
    )


def build_program(
    config: ConfigDict,
    plan: Plan,
    mesh: Mesh,
    *,
    resumed: bool = False,
    answers: AnswerKind | None = None,
    teacher: Teacher | None = None,
    attention: str | None = None,
) -> Program:
    """Builds everything that a run compiles. Computes nothing on a device.

    resumed: only warn of a distillation head without a target, which earlier versions accepted. answers: the kind of the answers
    that the run records or learns from; None: a teacher, if any, is a part of the step. teacher: required with
    config.features.pairs, to know the shapes of its features; its variables may be shapes. attention: what computed the attention
    when a resumed run started; None: a new run.

    Raises ConfigError for a configuration that cannot be built.
    """
    _check_batch(config, mesh)
    augment = build_augmentation(config, plan)
    if augment.mixes:
        _warn_of_groups(config, plan, mesh, resumed=resumed)
    _check_heads(config, resumed=resumed)
    model, chosen = _build_model_on_mesh(config, plan, mesh, attention)
    rows, deal = _rows_of_process(plan, mesh)
    schedule = _build_schedule(config, plan)
    matching = _matching(config, plan, model, teacher)
    optimizer = make_optimizer(schedule, clip_norm=config.train.clip_norm, **_optimizer_options(config, matching))
    averaging = config.ema.decay > 0

    def init(seed: jax.Array | int) -> TrainState:
        projections = None if matching is None else matching.initial(seed)
        return init_state(model, optimizer, seed, plan.image_size, ema=averaging, projections=projections)

    def start(variables: Variables) -> TrainState:
        projections = None if matching is None else matching.initial(config.seed)
        return state_of(variables, optimizer, ema=averaging, projections=projections)

    shapes = jax.eval_shape(init, config.seed)
    sharding = state_sharding(mesh, shapes, config.parallel.sharding_rules, config.parallel.fsdp_min_size)
    training = Training(
        model=model,
        augment=augment,
        loss=_build_loss(config, plan, mesh),
        optimizer=optimizer,
        schedule=schedule,
        seed=config.seed,
        ema_decay=config.ema.decay,
        accumulation_steps=config.train.accumulation_steps,
        skip_nonfinite=config.on_nonfinite == "skip",
        train_mode=config.train.train_mode,
        trained=_trained(config, shapes.params),
        features=matching,
        gather_once=_gather_once(config, mesh, model, shapes, sharding),
    )
    options = xla_options(mesh, config.parallel.xla_options)
    update_step = None
    if answers is not None:
        restored = functools.partial(answers.restored, decisions=needs_decisions(config))
        update_step = jax.jit(
            make_update_step(training, mesh, restored),
            donate_argnums=0,
            in_shardings=(sharding, split_rows(mesh), split_rows(mesh), split_rows(mesh)),
            out_shardings=(sharding, replicated(mesh)),
            compiler_options=options,
        )
    return Program(
        model=model,
        abstract_state=jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, sharding
        ),
        train_step=jax.jit(
            make_train_step(training, mesh, deal=deal),
            donate_argnums=0,
            in_shardings=(sharding, replicated(mesh), split_rows(mesh)),
            out_shardings=(sharding, replicated(mesh)),
            compiler_options=options,
        ),
        host_rows=rows,
        mesh=mesh,
        seed=config.seed,
        asking=None if answers is None else _asking(config, plan, mesh, answers, rows, deal),
        update_step=update_step,
        features=matching,
        _init=jax.jit(init, out_shardings=sharding),
        _start=jax.jit(start, out_shardings=sharding),
        attention=chosen,
    )


def _build_loss(config: ConfigDict, plan: Plan, mesh: Mesh) -> Loss:
    loss = build_loss(
        config, num_classes=plan.num_classes, labelled_share=plan.labelled.batch_size / plan.order.batch_size
    )
    if isinstance(plan.order, JointOrder) and not isinstance(loss, DistillationLoss):
        count = config.train.accumulation_steps
        rows = plan.order.is_unlabelled().reshape(mesh.size, count, -1)  # as `split_microbatches` does
        if len(set(rows.sum(axis=(0, 2)).tolist())) > 1:
            raise ConfigError(
                f"config.train.accumulation_steps={count} with config.distillation.kind={config.distillation.kind}: its "
                f"microbatches have different shares of unlabelled images in mixing groups of {plan.order.group_size} rows on "
                f"{mesh.size} device(s): use fewer, or a smaller config.augment.max_group_size"
            )
    return loss


def _check_batch(config: ConfigDict, mesh: Mesh) -> None:
    if config.train.batch_size % (mesh.size * config.train.accumulation_steps):
        raise ConfigError(
            f"config.train.batch_size={config.train.batch_size} does not divide into "
            f"config.train.accumulation_steps={config.train.accumulation_steps} microbatches on {mesh.size} devices"
        )


def _matching(config: ConfigDict, plan: Plan, model: nn.Module, teacher: Teacher | None) -> FeatureMatching | None:
    if not config.features.pairs:
        return None
    if teacher is None:
        raise ValueError("config.features.pairs needs the teacher")
    return build_matching(config, model, teacher.model, teacher.variables, plan.image_size)


def _gather_once(
    config: ConfigDict, mesh: Mesh, model: nn.Module, state: TrainState, sharding: TrainState
) -> GatherOnce | None:
    if not config.parallel.gather_once or config.parallel.fsdp == 1:
        return None
    # This package's models cast kernels to their dtype before anything else. Projections and registered models may not.
    exact = is_from_outside(type(model)) or config.model.gradient_dtype == "float32"
    dtype = jnp.float32 if exact else model.dtype

    def exchanged(path: Any, leaf: Any) -> Any:
        name = parameter_name(path)
        return dtype if name.endswith("/kernel") and not name.startswith(f"{PROJECTIONS}/") else leaf.dtype

    return GatherOnce(mesh, sharding.trained, jax.tree_util.tree_map_with_path(exchanged, state.trained))


def _optimizer_options(config: ConfigDict, matching: FeatureMatching | None) -> dict[str, Any]:
    options: dict[str, Any] = config.optimizer.to_dict()
    if matching is not None and tuple(options["trainable"]) != (".*",):  # projections are never frozen
        options["trainable"] = (*options["trainable"], f"^{PROJECTIONS}/")
    return options


def _trained(config: ConfigDict, params: Any) -> Any | None:
    """Which parameters are trained, as a tree of bools; None: all."""
    mask = trained(params, config.optimizer.trainable)
    if not any(jax.tree.leaves(mask)):
        raise ConfigError(
            f"config.optimizer.trainable={tuple(config.optimizer.trainable)} matches no parameter name; "
            f"the names include {', '.join(parameter_names(params)[:5])}"
        )
    return None if all(jax.tree.leaves(mask)) else mask


def _check_heads(config: ConfigDict, *, resumed: bool) -> None:
    try:
        check_heads(config)
    except ConfigError as error:
        if not resumed:
            raise
        console.warn(f"{error}; the run continues as an earlier version started it")


def _build_model_on_mesh(
    config: ConfigDict, plan: Plan, mesh: Mesh, started_with: str | None
) -> tuple[nn.Module, Choice | None]:
    model = build_model(
        config, num_classes=plan.num_classes, image_size=plan.image_size, compute_dtype=plan.compute_dtype
    )
    check_outputs(model, plan.image_size, train=config.train.train_mode)
    chosen = _attention(config, model, mesh, started_with)
    if chosen is not None:
        model = model.clone(attention=chosen.name)
    model = on_mesh(model, mesh)
    try:
        check_training(model, mesh.devices.flat[0].platform, plan.image_size)
    except ValueError as error:
        raise ConfigError(f"config.model.{error}") from error
    return model, chosen


def _attention(config: ConfigDict, model: nn.Module, mesh: Mesh, started_with: str | None) -> Choice | None:
    """Returns what computes the attention of `model`; "auto" keeps what the run started with, if it can."""
    found = attention_on(model, mesh)
    if found is None:
        return None
    chosen, requested = Choice(*found), config.model.attention
    if requested in FUSED and chosen.name != requested:
        raise ConfigError(f"config.model.attention={requested}: {chosen.why}; use auto or xla")
    if requested != "auto" or started_with == chosen.name or started_with not in ATTENTIONS:
        return chosen
    kept = Choice(*attention_on(model.clone(attention=started_with), mesh) or found)
    if kept.name == started_with:
        return Choice(kept.name, "with which the run started")
    console.warn(f"the run started with attention={started_with} and continues with {chosen.name}: {kept.why}")
    return chosen


def _build_schedule(config: ConfigDict, plan: Plan) -> Schedule:
    return cosine_schedule(
        peak=plan.peak_learning_rate,
        warmup=config.schedule.warmup_learning_rate,
        minimum=config.schedule.min_learning_rate,
        epochs=config.train.epochs,
        warmup_epochs=config.schedule.warmup_epochs,
        steps_per_epoch=plan.steps_per_epoch,
        kind=config.schedule.kind,
        per_step=config.schedule.per_step,
    )


def _rows_of_process(plan: Plan, mesh: Mesh) -> tuple[HostRows, Callable[[Batch], Batch] | None]:
    """Returns the rows that this process reads, and the function that groups them on the devices if the host cannot."""
    order = plan.order
    rows = host_rows(mesh, order.batch_size, order.block_size)[jax.process_index()]
    if rows.dealt:
        return rows, None
    if isinstance(order, JointOrder):  # each process reads its rows itself, and decodes copies that others read too
        return dataclasses.replace(rows, dealt=True), None
    deal = deal_on_devices(mesh, order.group_size, order.groups_per_block)
    if gathers_rows(mesh, deal, order.batch_size):
        console.warn(
            f"every device gathers all {order.batch_size} rows of each batch, because blocks of {order.block_size} rows do "
            f"not divide evenly among {mesh.size} devices; they do on 2, 4, 8, ... devices if config.train.batch_size, "
            f"config.augment.group_size ({order.group_size}) and config.augment.groups_per_block ({order.groups_per_block}) "
            "are powers of two"
        )
    return rows, deal


def _warn_of_groups(config: ConfigDict, plan: Plan, mesh: Mesh, *, resumed: bool) -> None:
    if config.augment.group_size is None and not resumed:
        _warn_of_tiny_groups(config, plan)
    rows, group_size = plan.order.batch_size // mesh.size, plan.order.group_size
    if rows % group_size:
        console.warn(
            f"a device holds {rows} rows, which is not a multiple of the mixing group size {group_size}: "
            "rows move between devices to be mixed"
        )


def _warn_of_tiny_groups(config: ConfigDict, plan: Plan) -> None:
    order, largest = plan.order, config.augment.max_group_size
    if isinstance(order, JointOrder):
        return
    better = batch_of_larger_groups(order.batch_size, order.repeats, largest, config.augment.groups_per_block)
    if better is not None:
        console.warn(
            f"config.train.batch_size={order.batch_size} has few divisors: its mixing groups have {order.group_size} rows, where "
            f"config.augment.max_group_size={largest} allows more; a batch of {better} rows has larger groups"
        )
