"""Checks of a configuration before anything is opened or compiled, and its fields that have no effect."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from deit_jax.config import (
    OPTIONS,
    ConfigError,
    asks_teacher,
    default_config,
    listed_names,
    needs_logits,
    needs_teacher,
)
from deit_jax.config_features import check_features
from deit_jax.config_losses import complete_section, options_of
from deit_jax.config_model import check_heads, check_model, check_teachers, has_own_fields, named_teachers
from deit_jax.data.registry import source_names, unread_fields
from deit_jax.loss_kinds import kinds_with_teacher, loss_kind
from deit_jax.options import Kind, bad_pattern
from deit_jax.plugins import import_configured


def validate(config: ConfigDict) -> None:
    """Raises ConfigError for a configuration that cannot be run, before anything is opened or compiled.

    Imports config.plugins first. A selected registered loss gets its section, with defaults for the fields that are not set.

    The errors: a plugin that cannot be imported, an unknown or missing field, a value that has the wrong type, is not finite or
    is outside its choices or bounds, an option that the model does not have, and values that contradict each other.
    """
    missing = missing_field(config)
    if missing is not None:
        raise ConfigError(f"config has no field {missing!r}: start from default_config()")
    import_configured(config)
    complete_section(config)
    _check_fields(config)
    for pattern, place in config.parallel.sharding_rules:
        if place not in ("fsdp", "replicate"):
            raise ConfigError(f"config.parallel.sharding_rules: {place!r} for {pattern!r} is not 'fsdp' or 'replicate'")
    if config.model.weights in ("pretrained", "embedded") and config.model.variables == "ema":
        raise ConfigError(f"config.model.variables=ema: {config.model.weights} weights have no moving average; use raw")
    _refuse_path_of_embedded("config.data", config.data)
    check_model(config)
    _check_extra_sets(config)
    _check_unlabelled(config)
    _check_teacher_section(config)


def _refuse_path_of_embedded(where: str, images: ConfigDict) -> None:
    if images.source == "fashion_mnist_10k" and images.path:
        raise ConfigError(
            f"{where}.path={images.path}: {where}.source is fashion_mnist_10k, which needs no path; for your own images set "
            f"{where}.source=folder (or npz)"
        )


def _check_fields(config: ConfigDict) -> None:
    """Checks that every field exists and that its value is allowed by its declaration."""
    known = options_of(config)
    for name, value in _fields(config):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"config.{name}: there is no such field; the nearest is config.{near}")
        complaint = known[name].complaint(value)
        if complaint is not None:
            raise ConfigError(f"config.{name}={_plain(value)!r}{complaint}")
        if known[name].patterns and (wrong := bad_pattern(value)) is not None:
            raise ConfigError(f"config.{name}: {wrong}")
    for name, value in config.published.items():
        if not Kind(float).fits(value):
            raise ConfigError(f"config.published: {name!r} is {_plain(value)!r}: give {Kind(float).wanted}")


def missing_field(config: ConfigDict) -> str | None:
    """Returns the dotted name of a field missing from a configuration, or from its teacher's recipe; None if it has all."""
    missing = next((name for name in sorted(OPTIONS) if not _has(config, name)), None)
    if missing is None and config.teacher.recipe is not None:
        missing = missing_field(config.teacher.recipe)
        return missing and f"teacher.recipe.{missing}"
    return missing


def _has(config: Any, name: str) -> bool:
    section, _, rest = name.partition(".")
    return isinstance(config, ConfigDict) and section in config and (not rest or _has(config[section], rest))


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and value of every field; a section with arbitrary keys counts as one field."""
    for key in config:
        name, value = prefix + key, config[key]
        if isinstance(value, ConfigDict) and name not in OPTIONS:
            yield from _fields(value, f"{name}.")
        else:
            yield name, value


def _check_extra_sets(config: ConfigDict) -> None:
    for name, entry in config.evaluation.extra.items():
        fields = set(entry) if isinstance(entry, ConfigDict) else set()
        if not {"source", "name", "path", "split"} <= fields <= {"source", "name", "path", "split", "labels"}:
            raise ConfigError(
                f"config.evaluation.extra.{name} has the fields {', '.join(sorted(fields)) or 'of no ConfigDict'}; it needs "
                "source, name, path and split, and labels for ReaL's labels"
            )
        wrong = [field for field in sorted(fields) if not isinstance(entry[field], str)]
        if wrong:
            raise ConfigError(f"config.evaluation.extra.{name}.{wrong[0]}={_plain(entry[wrong[0]])!r}: give a text")
        if entry.source not in source_names():
            choices = ", ".join(source_names())
            raise ConfigError(f"config.evaluation.extra.{name}.source={entry.source!r} must be one of {choices}")
        _refuse_path_of_embedded(f"config.evaluation.extra.{name}", entry)


def _check_unlabelled(config: ConfigDict) -> None:
    unlabelled, kind = config.unlabelled, config.distillation.kind
    if not unlabelled.source:
        if unlabelled.path or unlabelled.name:
            field = "path" if unlabelled.path else "name"
            raise ConfigError(
                f"config.unlabelled.{field}={unlabelled[field]} has no effect while config.unlabelled.source is empty: for a "
                "folder of images set config.unlabelled.source=folder"
            )
        return
    if unlabelled.source not in source_names():
        choices = ", ".join(source_names())
        raise ConfigError(f"config.unlabelled.source={unlabelled.source!r} must be one of {choices}, or '' for none")
    _refuse_path_of_embedded("config.unlabelled", unlabelled)
    if unlabelled.source == "tfds" and not unlabelled.name:
        raise ConfigError("config.unlabelled.source=tfds needs config.unlabelled.name, which is empty")
    if not needs_teacher(config):
        raise ConfigError(
            f"config.unlabelled.source={unlabelled.source}: only a teacher labels these images, and config.distillation.kind is "
            f"{kind}: {_how_to_use_a_teacher()}"
        )


def _check_teacher_section(config: ConfigDict) -> None:
    kind, teacher = config.distillation.kind, config.teacher
    names, weights = listed_names(teacher.name), listed_names(teacher.weights)
    if not needs_teacher(config):
        fields = ("weights", "answers", "record", "recipe", "mean", "std", "classes")
        if teacher.each or any(teacher[field] not in (None, "") for field in fields):
            raise ConfigError(
                f"config.teacher is set but config.distillation.kind is {kind}: {_how_to_use_a_teacher()}"
            )
    elif teacher.recipe is not None:
        for field in ("weights", "answers"):
            if teacher[field]:
                raise ConfigError(f"config.teacher.{field} and config.teacher.recipe exclude each other: set only one")
        _validate_recipe(teacher.recipe)
        if (trained := teacher.recipe.model.name) != teacher.name:
            raise ConfigError(f"config.teacher.name={teacher.name!r}, but config.teacher.recipe trains {trained!r}")
    elif teacher.answers:
        _refuse_bad_answers(config, "answers")
    elif not teacher.weights:
        raise ConfigError(
            f"{_asking(config)} needs a teacher: set config.teacher.weights to the --workdir of a trained one, a "
            "weights file, or 'pretrained' (or to 'random', only to try a configuration)"
        )
    elif len(names) != len(weights) and not (len(names) == 1 and Path(teacher.weights).exists()):
        raise ConfigError(
            f"config.teacher.name has {len(names)} name(s), config.teacher.weights {len(weights)}: give equally many, "
            "separated by commas"
        )
    elif not all(names) or not all(weights):
        raise ConfigError("config.teacher.name and config.teacher.weights: there is nothing between two commas")
    elif teacher.variables == "ema" and set(weights) <= {"pretrained", "embedded", "random"}:
        kinds = " and ".join(weights)
        raise ConfigError(f"config.teacher.variables=ema: {kinds} weights have no moving average; use raw")
    if asks_teacher(config) and teacher.record:
        _refuse_bad_answers(config, "record")
    check_teachers(config)
    check_features(config)


def _how_to_use_a_teacher() -> str:
    *others, last = kinds_with_teacher()
    return f"set it to {', '.join(others)} or {last}, or set config.features.pairs"


def _asking(config: ConfigDict) -> str:
    """The field that needs a teacher, for messages."""
    return f"config.distillation.kind={config.distillation.kind}" if needs_logits(config) else "config.features.pairs"


def _refuse_bad_answers(config: ConfigDict, field: str) -> None:
    """Raises ConfigError if recorded answers contradict another field."""
    teacher = config.teacher
    if teacher.answers and teacher.record:
        raise ConfigError("config.teacher.answers and config.teacher.record exclude each other: keep one of them")
    if config.on_nonfinite == "rollback":
        raise ConfigError(
            f"config.on_nonfinite=rollback does not work with config.teacher.{field}, whose answers are for fixed data: set "
            "config.on_nonfinite to stop or skip"
        )


def _validate_recipe(recipe: ConfigDict) -> None:
    try:
        validate(recipe)
        check_heads(recipe)
    except ConfigError as error:
        raise ConfigError(re.sub(r"\bconfig\b", "config.teacher.recipe", str(error))) from error


def without_effect(
    config: ConfigDict, typed: Collection[str] = (), *, recording: bool = False
) -> list[tuple[str, str]]:
    """Returns (field, reason) for each field that is not at its default but has no effect, also in the teacher's recipe.

    typed: dotted names of the fields given on the command line, without "config."; needed by fields with `only_if_typed`.
    recording: the configuration is for --mode=record.
    """
    defaults = default_config()
    useless = []
    for name, reason in _useless(config, recording):
        given = name in typed or any(field.startswith(f"{name}.") for field in typed)
        if _value(config, name) != _value(defaults, name) and (given or not OPTIONS[name].only_if_typed):
            useless.append((name, reason))
    recipe = config.teacher.recipe
    if needs_teacher(config) and recipe is not None:
        prefix = "teacher.recipe."
        inner = [name.removeprefix(prefix) for name in typed if name.startswith(prefix)]
        useless += [(prefix + name, reason) for name, reason in without_effect(recipe, inner)]
    return useless


def questionable(config: ConfigDict) -> list[str]:
    """Returns a sentence for each combination of values that is probably unintended, also in the teacher's recipe."""
    schedule, train, found = config.schedule, config.train, []
    peak = schedule.base_learning_rate * train.batch_size / schedule.base_batch_size
    if schedule.warmup_epochs >= train.epochs:
        found.append(
            f"config.schedule.warmup_epochs={schedule.warmup_epochs:g} is not less than config.train.epochs={train.epochs}: the "
            "learning rate never reaches its peak"
        )
    if schedule.min_learning_rate > peak:
        found.append(
            f"config.schedule.min_learning_rate={schedule.min_learning_rate:g} is above the peak rate {peak:g}, so the learning "
            "rate rises to the end"
        )
    if needs_teacher(config) and (recipe := config.teacher.recipe) is not None:
        found += [re.sub(r"\bconfig\b", "config.teacher.recipe", text) for text in questionable(recipe)]
    return found


def _useless(config: ConfigDict, recording: bool) -> Iterator[tuple[str, str]]:
    """Yields every field that has no effect at any value in this configuration, and why."""
    augment, data, log, optimizer = config.augment, config.data, config.log, config.optimizer
    kind, protocol, weights, teacher = (
        config.distillation.kind,
        config.evaluation.protocol,
        config.model.weights,
        config.teacher,
    )
    taught, known = needs_teacher(config), loss_kind(kind)
    used = ("kind", *(() if known is None else known.uses))
    loss_fields = [name for name in OPTIONS if name.startswith("distillation.") and name.partition(".")[2] not in used]
    answered = taught and bool(teacher.answers)
    own_recipe = taught and not answered and teacher.recipe is not None
    own_overrides = taught and not answered and teacher.recipe is None
    own_overrides = own_overrides and all(has_own_fields(each.weights) for each in named_teachers(config))
    mixing = [bool(alpha) for alpha in (augment.mixup_alpha, augment.cutmix_alpha)]
    crop, source = f"data.train_crop is {data.train_crop}", f"data.source is {data.source}"
    rows: list[tuple[bool, str, Sequence[str]]] = [
        (True, f"distillation.kind is {kind}", loss_fields),
        (not taught, f"distillation.kind is {kind}",
         ("teacher.name", "teacher.overrides", "teacher.variables", "teacher.fused", "teacher.record_as", "teacher.top_k",
          "evaluation.teacher")),
        (taught and not needs_logits(config), f"distillation.kind is {kind}: only the teacher's features are used",
         ("teacher.classes", "teacher.record_as", "teacher.top_k", "evaluation.teacher")),
        # Not those that the recorder reads (teacher.fused, record_as, top_k): both commands take the same configuration.
        (answered, "teacher.answers is set", ("teacher.on_change", "evaluation.teacher")),
        (not teacher.answers, "teacher.answers is empty", ["teacher.answers_timeout"]),
        (own_recipe, "teacher.recipe has its own", ["teacher.overrides"]),
        (own_overrides, "a teacher from a workdir or a program has its own", ["teacher.overrides"]),
        (needs_logits(config) and not (teacher.answers or teacher.record or recording), "teacher.record is empty",
         ("teacher.record_as", "teacher.top_k")),
        (not weights, "model.weights is empty", ("model.variables", "model.reset_heads")),
        (bool(weights), "model.weights is set", ["model.regnet_init"]),
        (not config.train.train_mode, "train.train_mode is False",
         ("model.dropout_rate", "model.drop_path_rate", "model.patch_keep_rate")),
        (not config.schedule.warmup_epochs, "schedule.warmup_epochs is 0", ["schedule.warmup_learning_rate"]),
        (not config.unlabelled.source, "unlabelled.source is empty", ("unlabelled.split", "unlabelled.share")),
        (bool(config.unlabelled.source), f"unlabelled.source is {config.unlabelled.source}",
         [f"unlabelled.{name}" for name in unread_fields(config.unlabelled.source) if name == "name"]),
        (True, source, [f"data.{name}" for name in unread_fields(data.source)]),
        (data.train_crop != "random_resized", crop, ("data.crop_scale", "data.crop_ratio")),
        (data.train_crop != "padded", crop, ["data.crop_padding"]),
        (protocol != "deit", f"evaluation.protocol is {protocol}", ["evaluation.crop_ratio"]),
        (augment.group_size is not None, "augment.group_size is set", ["augment.max_group_size"]),
        (not augment.erase_probability, "augment.erase_probability is 0", ("augment.erase_mode", "augment.erase_count")),
        (not any(mixing), "mixup_alpha and cutmix_alpha are 0",
         ("augment.mix_mode", "augment.mix_probability", "augment.switch_probability")),
        (any(mixing) and not all(mixing), "mixup or cutmix is off", ["augment.switch_probability"]),
        (all(mixing) and not augment.mix_probability, "augment.mix_probability is 0", ["augment.switch_probability"]),
        (any(mixing) and not augment.mix_probability, "augment.mix_probability is 0",
         ("augment.mixup_alpha", "augment.cutmix_alpha", "augment.mix_mode")),
        (optimizer.name == "sgd", "optimizer.name is sgd", ("optimizer.betas", "optimizer.eps")),
        (optimizer.name != "sgd", f"optimizer.name is {optimizer.name}", ["optimizer.momentum"]),
        (not optimizer.weight_decay, "optimizer.weight_decay is 0", ["optimizer.no_decay"]),
        (not log.wandb, "log.wandb is False", ("log.wandb_project", "log.wandb_entity", "log.wandb_name")),
        (not log.profile_steps, "log.profile_steps is 0", ["log.profile_after"]),
        (config.parallel.fsdp == 1, "parallel.fsdp is 1", ("parallel.sharding_rules", "parallel.fsdp_min_size",
         "parallel.gather_once")),
    ]  # fmt: skip
    yield from ((name, reason) for applies, reason, names in rows if applies for name in names)


def _plain(value: Any) -> Any:
    """The value for messages; the representation of a ConfigDict has several lines."""
    return value.to_dict() if isinstance(value, ConfigDict) else value


def _value(config: ConfigDict, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value[part]
    return value.to_dict() if isinstance(value, ConfigDict) else tuple(value) if isinstance(value, list) else value
