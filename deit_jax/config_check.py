"""Which configurations are refused before anything is opened or compiled, and which fields have no effect."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from deit_jax.config import OPTIONS, ConfigError, default_config, listed_names, needs_teacher
from deit_jax.config_losses import complete_section, options_of
from deit_jax.config_model import check_heads, check_model, check_teachers, named_teachers
from deit_jax.data.registry import source_names, unread_fields
from deit_jax.loss_kinds import kinds_with_teacher, loss_kind
from deit_jax.options import Kind, bad_pattern
from deit_jax.plugins import import_configured
from deit_jax.weights.files import is_workdir


def validate(config: ConfigDict) -> None:
    """Refuse a configuration that cannot be run, before anything is opened or compiled.

    First config.plugins are imported. A registered loss that is picked gets its section, with the defaults of what is not set.

    Raises ConfigError: a plugin that cannot be imported, a field that is unknown or missing, a value that is of another type, not
    finite or outside its choices or bounds, an option that the model does not have, or values that do not go together.
    """
    missing = missing_field(config)
    if missing is not None:
        raise ConfigError(f"config has no field {missing!r}: start from default_config()")
    import_configured(config)
    complete_section(config)
    _check_fields(config)
    for pattern, place in config.parallel.sharding_rules:
        if place not in ("fsdp", "replicate"):
            raise ConfigError(
                f"config.parallel.sharding_rules: {place!r} for {pattern!r} is neither 'fsdp' nor 'replicate'"
            )
    if config.model.weights == "pretrained" and config.model.variables == "ema":
        raise ConfigError("config.model.variables=ema: the published weights have no moving average; take raw")
    if config.data.source == "fashion_mnist_10k" and config.data.path:
        raise ConfigError(
            f"config.data.path={config.data.path}: config.data.source is fashion_mnist_10k, whose images come with the "
            "package; for your own set config.data.source=folder (or npz)"
        )
    check_model(config)
    _refuse_bad_extra_sets(config)
    _refuse_bad_teachers(config)


def _check_fields(config: ConfigDict) -> None:
    """Refuse fields that there are not, and values that their declarations do not allow."""
    known = options_of(config)
    for name, value in _fields(config):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"config.{name}: there is no such field; the nearest is config.{near}")
        complaint = known[name].complaint(value)
        if complaint is not None:
            raise ConfigError(f"config.{name}={_plain(value)!r}{complaint}")
        wrong = bad_pattern(value) if known[name].patterns else None
        if wrong is not None:
            raise ConfigError(f"config.{name}: {wrong}")
    for name, value in config.published.items():
        if not Kind(float).fits(value):
            raise ConfigError(f"config.published: {name!r} is {_plain(value)!r}: give {Kind(float).wanted}")


def missing_field(config: ConfigDict) -> str | None:
    """The dotted name of a field that a configuration, or its teacher's recipe, lacks; None if it has all."""
    missing = next((name for name in sorted(OPTIONS) if not _has(config, name)), None)
    if missing is None and config.teacher.recipe is not None:
        missing = missing_field(config.teacher.recipe)
        return missing and f"teacher.recipe.{missing}"
    return missing


def _has(config: Any, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(config, ConfigDict) or part not in config:
            return False
        config = config[part]
    return True


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the value of every field; a section whose fields are not fixed is one."""
    for key in config:
        name, value = prefix + key, config[key]
        if isinstance(value, ConfigDict) and name not in OPTIONS:
            yield from _fields(value, f"{name}.")
        else:
            yield name, value


def _refuse_bad_extra_sets(config: ConfigDict) -> None:
    for name, entry in config.evaluation.extra.items():
        fields = set(entry) if isinstance(entry, ConfigDict) else set()
        if not {"source", "name", "path", "split"} <= fields <= {"source", "name", "path", "split", "labels"}:
            raise ConfigError(
                f"config.evaluation.extra.{name} has the fields {', '.join(sorted(fields)) or 'of no ConfigDict'}; give it "
                "source, name, path and split, and labels if they are ReaL's"
            )
        wrong = [field for field in sorted(fields) if not isinstance(entry[field], str)]
        if wrong:
            raise ConfigError(f"config.evaluation.extra.{name}.{wrong[0]}={_plain(entry[wrong[0]])!r}: give a text")
        if entry.source not in source_names():
            raise ConfigError(
                f"config.evaluation.extra.{name}.source={entry.source!r} is none of {', '.join(source_names())}"
            )


def _refuse_bad_teachers(config: ConfigDict) -> None:
    kind, teacher = config.distillation.kind, config.teacher
    names, weights = listed_names(teacher.name), listed_names(teacher.weights)
    if not needs_teacher(config):
        if teacher.weights or any(teacher[field] is not None for field in ("recipe", "mean", "std", "classes")):
            taught = kinds_with_teacher()
            raise ConfigError(
                f"config.teacher is given but config.distillation.kind is {kind}: set it to "
                f"{', '.join(taught[:-1])} or {taught[-1]}"
            )
    elif teacher.recipe is not None:
        if teacher.weights:
            raise ConfigError("config.teacher.weights and config.teacher.recipe exclude each other: keep one of them")
        _validate_recipe(teacher.recipe)
        if teacher.recipe.model.name != teacher.name:
            raise ConfigError(
                f"config.teacher.name={teacher.name!r}, but config.teacher.recipe trains {teacher.recipe.model.name!r}"
            )
    elif not teacher.weights:
        raise ConfigError(
            f"config.distillation.kind={kind} needs a teacher: set config.teacher.weights to "
            "the --workdir of a trained one, a weights file, or 'pretrained' (or to 'random', only to try a configuration)"
        )
    elif len(names) != len(weights) and not (len(names) == 1 and Path(teacher.weights).exists()):
        raise ConfigError(
            f"config.teacher.name has {len(names)} name(s), config.teacher.weights {len(weights)}: give as many, "
            "separated by commas"
        )
    elif not all(names) or not all(weights):
        raise ConfigError("config.teacher.name and config.teacher.weights: there is nothing between two commas")
    elif teacher.variables == "ema" and set(weights) <= {"pretrained", "random"}:
        raise ConfigError(
            f"config.teacher.variables=ema: {' and '.join(weights)} weights have no moving average; take raw"
        )
    check_teachers(config)


def _validate_recipe(recipe: ConfigDict) -> None:
    try:
        validate(recipe)
        check_heads(recipe)
    except ConfigError as error:
        raise ConfigError(re.sub(r"\bconfig\b", "config.teacher.recipe", str(error))) from error


def without_effect(config: ConfigDict, typed: Collection[str] = ()) -> list[tuple[str, str]]:
    """(field, why it has no effect) of the fields that are not at their defaults, or are in `typed`, and change nothing.

    typed: dotted names of fields that are given on the command line, without "config.". The teacher's recipe is searched, too.
    """
    defaults = default_config()
    found = []
    for name, reason in _useless(config):
        given = name in typed or any(field.startswith(f"{name}.") for field in typed)
        if _value(config, name) != _value(defaults, name) and (given or not OPTIONS[name].only_if_typed):
            found.append((name, reason))
    recipe = config.teacher.recipe
    if needs_teacher(config) and recipe is not None:
        prefix = "teacher.recipe."
        inner = [name.removeprefix(prefix) for name in typed if name.startswith(prefix)]
        found += [(prefix + name, reason) for name, reason in without_effect(recipe, inner)]
    return found


def _useless(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Every field that has no effect here at any value, and why."""
    augment, data, log = config.augment, config.data, config.log
    kind, teacher = config.distillation.kind, config.teacher

    def these(reason: str, *names: str) -> Iterator[tuple[str, str]]:
        return ((name, reason) for name in names)

    known = loss_kind(kind)
    read = () if known is None else known.uses
    fields = [name.partition(".")[2] for name in OPTIONS if name.startswith("distillation.")]
    unread = (f"distillation.{name}" for name in fields if name != "kind" and name not in read)
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


def _plain(value: Any) -> Any:
    """A value as a message shows it: the representation of a ConfigDict has several lines."""
    return value.to_dict() if isinstance(value, ConfigDict) else value


def _value(config: ConfigDict, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value[part]
    return value.to_dict() if isinstance(value, ConfigDict) else tuple(value) if isinstance(value, list) else value
