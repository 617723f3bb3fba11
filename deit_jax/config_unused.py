"""Fields of a configuration that other fields make useless. They are no error, but whoever set them should know."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from ml_collections import ConfigDict

from deit_jax.config import default_config, needs_teacher
from deit_jax.config_model import named_teachers
from deit_jax.data.registry import unread_fields
from deit_jax.loss_kinds import loss_kind
from deit_jax.weights.files import is_workdir

# Files under configs/ set these for what a user may add, e.g. a teacher or weights: they are named if the command line has them.
_ONLY_IF_TYPED = (
    "data.name", "model.variables", "teacher.name", "teacher.overrides", "evaluation.teacher", "augment.max_group_size",
)  # fmt: skip


def without_effect(config: ConfigDict, typed: Collection[str] = ()) -> list[tuple[str, str]]:
    """(field, why it has no effect) of the fields that are not at their defaults, or are in `typed`, and change nothing.

    typed: dotted names of fields that are given on the command line, without "config.". The teacher's recipe is searched, too.
    """
    defaults = default_config()
    found = []
    for name, reason in _useless(config):
        given = name in typed or any(field.startswith(f"{name}.") for field in typed)
        if _value(config, name) != _value(defaults, name) and (given or name not in _ONLY_IF_TYPED):
            found.append((name, reason))
    recipe = config.teacher.recipe
    if needs_teacher(config) and recipe is not None:
        prefix = "teacher.recipe."
        inner = [name.removeprefix(prefix) for name in typed if name.startswith(prefix)]
        found += [(prefix + name, reason) for name, reason in without_effect(recipe, inner)]
    return found


def _useless(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Every field that has no effect here, whatever its value, and why."""
    augment, data, log = config.augment, config.data, config.log
    kind, teacher = config.distillation.kind, config.teacher

    def these(reason: str, *names: str) -> Iterator[tuple[str, str]]:
        return ((name, reason) for name in names)

    known = loss_kind(kind)
    read = () if known is None else known.uses
    unread = (f"distillation.{name}" for name in ("alpha", "tau", "kl", "kl_mean") if name not in read)
    yield from these(f"distillation.kind is {kind}", *unread)
    if not needs_teacher(config):
        yield from these(
            f"distillation.kind is {kind}",
            "teacher.name",
            "teacher.overrides",
            "teacher.variables",
            "evaluation.teacher",
        )
    elif teacher.recipe is not None:
        yield from these("teacher.recipe has its own", "teacher.overrides")
    elif all(is_workdir(weights) for _, weights in named_teachers(config)):
        yield from these("a teacher of a workdir has its own", "teacher.overrides")
    if not config.model.weights:
        yield from these("model.weights is empty", "model.variables")

    yield from these(f"data.source is {data.source}", *(f"data.{name}" for name in unread_fields(data.source)))
    if data.train_crop != "random_resized":
        yield from these(f"data.train_crop is {data.train_crop}", "data.crop_scale", "data.crop_ratio")
    if data.train_crop != "padded":
        yield from these(f"data.train_crop is {data.train_crop}", "data.crop_padding")
    if config.evaluation.protocol != "deit":
        yield from these(f"evaluation.protocol is {config.evaluation.protocol}", "evaluation.crop_ratio")

    if augment.group_size is not None:
        yield from these("augment.group_size is set", "augment.max_group_size")
    if not augment.erase_probability:
        yield from these("augment.erase_probability is 0", "augment.erase_mode", "augment.erase_count")
    if not (augment.mixup_alpha or augment.cutmix_alpha):
        yield from these(
            "mixup_alpha and cutmix_alpha are 0",
            "augment.mix_mode",
            "augment.mix_probability",
            "augment.switch_probability",
        )
    elif not (augment.mixup_alpha and augment.cutmix_alpha):
        yield from these("mixup or cutmix is off", "augment.switch_probability")

    if config.optimizer.name == "sgd":
        yield from these("optimizer.name is sgd", "optimizer.betas", "optimizer.eps")
    else:
        yield from these(f"optimizer.name is {config.optimizer.name}", "optimizer.momentum")
    if not config.optimizer.weight_decay:
        yield from these("optimizer.weight_decay is 0", "optimizer.no_decay")

    if not log.wandb:
        yield from these("log.wandb is False", "log.wandb_project", "log.wandb_entity", "log.wandb_name")
    if not log.profile_steps:
        yield from these("log.profile_steps is 0", "log.profile_after")
    if config.parallel.fsdp == 1:
        yield from these("parallel.fsdp is 1", "parallel.sharding_rules", "parallel.fsdp_min_size")


def _value(config: ConfigDict, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value[part]
    return value.to_dict() if isinstance(value, ConfigDict) else tuple(value) if isinstance(value, list) else value
