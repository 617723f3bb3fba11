"""The summary of a run that the console shows before it starts."""

from __future__ import annotations

from collections import Counter

import jax
from ml_collections import ConfigDict

from deit_jax.answers.decisions import described_figures
from deit_jax.answers.files import AnswersFolder, Facts, described
from deit_jax.config_features import described_features
from deit_jax.config_losses import loss_section
from deit_jax.config_model import described_model
from deit_jax.data.registry import holds_out
from deit_jax.data.sources import ImageSource, notes_of
from deit_jax.data.unlabelled import labelled_of
from deit_jax.loss_kinds import loss_kind
from deit_jax.training.optimizer import trained
from deit_jax.training.plan import Plan
from deit_jax.training.program import Initial, Program
from deit_jax.training.state import count_parameters
from deit_jax.training.teacher import Teacher


def describe(
    config: ConfigDict,
    plan: Plan,
    program: Program,
    train_source: ImageSource,
    eval_source: ImageSource,
    teacher: Teacher | None,
    initial: Initial | None = None,
    answers: tuple[AnswersFolder, Facts] | None = None,
) -> dict[str, str | list[str]]:
    """Describes a run: model, initial weights, teacher, devices, data, recipe and length, by name."""
    facts: dict[str, str | list[str]] = {
        "model": f"{described_model(config)}: "
        f"{count_parameters(program.abstract_state.variables):,} parameters, {plan.image_size} px, "
        f"{plan.num_classes} classes, {plan.compute_dtype}",
    }
    if initial is not None:
        facts["start"] = initial.description
    elif config.model.weights:
        facts["start"] = f"started from {config.model.weights}, resumes from its checkpoint"
    if program.attention is not None and config.model.attention == "auto":
        facts["attention"] = f"{program.attention.name}: {program.attention.why}"
    facts |= _trained_part(config, program)
    if teacher is not None:
        size = f"{teacher.num_parameters:,} parameters, " if teacher.num_parameters else ""  # a program does not say
        facts["teacher"] = f"{teacher.description}: {size}frozen"
    if answers is not None:
        folder, recorded = answers
        facts["teacher"] = f"{recorded.teacher}: not loaded, its answers are in {folder} ({described(recorded)})"
        if (figures := folder.figures()) is not None:
            facts["its decisions"] = described_figures(figures)
    elif config.teacher.record:
        facts["answers"] = f"recorded in {config.teacher.record}"
    loss = loss_kind(config.distillation.kind)
    if loss is not None and loss.name != "none":
        facts["distillation"] = loss.described(loss_section(config))
    if program.features is not None:
        projections = program.features.num_parameters
        facts["features"] = f"{described_features(config)}; projections of {projections:,} parameters, not exported"
    kinds = Counter(device.device_kind for device in program.mesh.devices.flat)
    facts["devices"] = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    axes = ", ".join(f"{axis}={size}" for axis, size in program.mesh.shape.items())
    facts["mesh"] = f"{axes}; {jax.process_count()} process(es)"
    facts |= describe_data(config, plan, train_source, eval_source)
    facts |= _recipe(config, plan)
    facts["length"] = (
        f"{plan.total_steps:,} steps of {config.train.batch_size} images, {plan.steps_per_epoch:,} per epoch "
        f"({plan.total_steps / plan.steps_per_epoch:.4g} of {config.train.epochs} epochs)" + _left_out(plan)
    )
    return facts


def describe_data(
    config: ConfigDict, plan: Plan, train_source: ImageSource, eval_source: ImageSource | None
) -> dict[str, str | list[str]]:
    """Describes the images of a run, and the sources' notes on them. eval_source: None if it cannot be opened."""
    evaluation = "no" if eval_source is None else f"{len(eval_source):,}"
    facts: dict[str, str | list[str]] = {
        "data": f"{_data_name(config)}: {len(labelled_of(train_source)):,} training images, {evaluation} for evaluation, "
        f"{len(train_source.class_names)} classes"
        + (f" ({config.data.held_out:.0%} of every class held out)" if holds_out(config.data) else "")
    }
    facts |= _unlabelled(config, plan)
    if notes := notes_of(train_source, *([] if eval_source is None else [eval_source])):
        facts["data notes"] = notes
    return facts


def _left_out(plan: Plan) -> str:
    """Reports the images that an epoch leaves out, if there are many: `selected_positions` and whole batches round it down."""
    order = plan.labelled
    left = order.num_examples - plan.steps_per_epoch * order.batch_size
    if left * 20 <= order.num_examples:
        return ""
    return f"; {left:,} of an epoch's {order.num_examples:,} images are skipped, different ones each time (docs/glossary.md)"


def _unlabelled(config: ConfigDict, plan: Plan) -> dict[str, str]:
    """Describes the unlabelled images, if there are any, and how often each kind is seen."""
    labelled, order, section = plan.labelled, plan.unlabelled, config.unlabelled
    if order is None:
        return {}
    seen, theirs = (plan.total_steps * each.batch_size / each.num_examples for each in (labelled, order))
    return {
        "unlabelled": f"{section.name if section.source == 'tfds' else section.path or section.source}: "
        f"{order.num_examples:,} images, which only the teacher labels, {order.batch_size} of {plan.order.batch_size} rows of "
        f"a batch; each is seen {theirs:.3g} times, a labelled image {seen:.3g} times (epochs count labelled images)"
    }


def _recipe(config: ConfigDict, plan: Plan) -> dict[str, str]:
    augment, data, optimizer, schedule = config.augment, config.data, config.optimizer, config.schedule
    return {
        "input": f"{data.train_crop} crop, {data.repeats} repeat(s), flip {augment.flip_probability:g}, "
        f"{_operations(augment)}, erasing {augment.erase_probability:g} ({augment.erase_mode})",
        "mixing": f"{_mixing(augment, plan)}, label smoothing {augment.label_smoothing:g}",
        "optimizer": f"{optimizer.name}, weight decay {optimizer.weight_decay:g}, peak rate {plan.peak_learning_rate:.3g}, "
        f"{schedule.warmup_epochs:g} warm-up epochs, {schedule.kind} cosine schedule",
        "regularisation": (
            f"stochastic depth {config.model.drop_path_rate:g}, dropout {config.model.dropout_rate:g}, "
            if config.train.train_mode
            else "modules in evaluation mode: no dropout, BatchNorm uses its running statistics; "
        )
        + f"EMA {config.ema.decay:g}"
        + ("" if config.train.clip_norm is None else f", clip norm {config.train.clip_norm:g}"),
    }


def _trained_part(config: ConfigDict, program: Program) -> dict[str, str]:
    """Describes the trained part of the model, if it is not all of it."""
    leaves = jax.tree.leaves(program.abstract_state.params)
    mask = jax.tree.leaves(trained(program.abstract_state.params, config.optimizer.trainable))
    if all(mask):
        return {}
    count = sum(leaf.size for leaf, train in zip(leaves, mask, strict=True) if train)
    patterns = ", ".join(config.optimizer.trainable)
    return {"trained": f"{count:,} parameters in {sum(mask)} of {len(leaves)} tensors ({patterns}); the rest is frozen"}


def _mixing(augment: ConfigDict, plan: Plan) -> str:
    if not augment.mixup_alpha and not augment.cutmix_alpha:
        return "off"
    groups = f"in groups of {plan.order.group_size}, {plan.order.groups_per_block} per block"
    return f"mixup {augment.mixup_alpha:g}, cutmix {augment.cutmix_alpha:g} {groups}"


def _operations(augment: ConfigDict) -> str:
    if augment.auto_augment:
        return f"AutoAugment {augment.auto_augment}"
    if augment.color_jitter:
        return f"color jitter {augment.color_jitter:g}"
    return f"RandAugment {augment.rand_augment or 'off'}"


def _data_name(config: ConfigDict) -> str:
    data = config.data
    return {"fashion_mnist_10k": "Fashion-MNIST (embedded subset)", "tfds": data.name}.get(
        data.source, data.path or data.source
    )
