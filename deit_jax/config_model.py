"""The models of a configuration: the options that their modules have, and the fields that `model.overrides` may set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from deit_jax.config import OPTIONS, ConfigError, asks_teacher, listed_names
from deit_jax.loss_kinds import loss_kind
from deit_jax.models.registry import check_fields, has_token, model_fields
from deit_jax.weights.files import kind_of

# Fields of a module that are set by an option of the configuration.
_OPTIONS = tuple(name.removeprefix("model.") for name, each in OPTIONS.items() if each.of_model)
_ELSEWHERE = {"num_classes": "num_classes", "image_size": "image_size", "dtype": "compute_dtype"}
# Set by `freeze` on a trained network, whose parameters then have other names.
_NOT_FROM_OUTSIDE = ("folded",)


def described_model(config: ConfigDict) -> str:
    """Returns the model's name, with the fields of `model.overrides` in brackets if there are some."""
    overrides = config.model.overrides
    fields = f" ({', '.join(f'{name}={value}' for name, value in sorted(overrides.items()))})" if overrides else ""
    return f"{config.model.name}{fields}"


def overridable(section: str, name: str) -> dict[str, Any]:
    """Returns the fields that `config.<section>.overrides` may set for the named model, with the model's own values.

    section: "model" or "teacher". Raises ConfigError for an unknown model.
    """
    try:
        fields = model_fields(name)
    except ValueError as error:
        raise ConfigError(f"config.{section}: {error}") from error
    reserved = {*_ELSEWHERE, *_NOT_FROM_OUTSIDE, *(_OPTIONS if section == "model" else ())}
    return {key: value for key, value in fields.items() if key not in reserved}


def check_overrides(section: str, name: str, overrides: Mapping[str, Any]) -> None:
    """Raises ConfigError if a field of `config.<section>.overrides` is reserved, unknown or has a wrong value."""
    known = overridable(section, name)
    for key in overrides:
        if key in known:
            continue
        if key in _OPTIONS or key in _ELSEWHERE:
            instead = f"model.{key}" if key in _OPTIONS else _ELSEWHERE[key]
            ours = section == "model"
            why = f"set config.{instead} instead" if ours else f"the student's config.{instead} determines it"
            if section == "model" or key in _ELSEWHERE:
                raise ConfigError(f"config.{section}.overrides.{key}: {why}")
        if key in _NOT_FROM_OUTSIDE:
            raise ConfigError(f"config.{section}.overrides.{key} is set automatically when a network is frozen")
    try:
        # A plain dictionary for messages: the representation of a ConfigDict has several lines.
        check_fields(name, overrides.to_dict() if isinstance(overrides, ConfigDict) else overrides)
    except ValueError as error:
        raise ConfigError(f"config.{section}.overrides: {error}") from error


def module_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the options of config.model that the configured model's module has, and config.model.overrides."""
    known = _known_fields(config)
    options = {name: config.model[name] for name in _OPTIONS if name in known}
    return {**config.model.overrides, **options}


def absent_options(config: ConfigDict) -> tuple[str, ...]:
    """Returns the dotted names of the options of config.model that have no effect on the configured model."""
    known = _known_fields(config)
    absent = {name for name in _OPTIONS if name not in known}
    absent |= set() if has_distillation_token(config) else {"fusion"}
    return tuple(f"model.{name}" for name in _OPTIONS if name in absent)


def check_model(config: ConfigDict) -> None:
    """Raises ConfigError for an unknown model, bad overrides, or an option of config.model that is set but not supported.

    An option at its default, or at its value in earlier versions, counts as not set.
    """
    name = config.model.name
    check_overrides("model", name, config.model.overrides)
    known = _known_fields(config)
    for option in _OPTIONS:
        value, declared = config.model[option], OPTIONS[f"model.{option}"]
        default = declared.default
        if option not in known and value not in (default, declared.before, 0):  # a drop rate of 0 counts as not set
            raise ConfigError(
                f"config.model.{option}={value!r}: {name} does not have this option; leave it at {default!r}"
            )
    fusion, default = config.model.fusion, OPTIONS["model.fusion"].default
    if "fusion" in known and not has_distillation_token(config) and fusion != default:
        raise ConfigError(
            f"config.model.fusion={fusion!r}: {name} has one head, so there is nothing to fuse; leave it at {default!r}"
        )


# The fields of config.teacher that each of several teachers can have of its own.
OF_EACH = ("overrides", "variables", "mean", "std", "classes")


@dataclasses.dataclass(frozen=True)
class NamedTeacher:
    """The fields of config.teacher for a single teacher."""

    name: str
    weights: str
    overrides: Mapping[str, Any]
    variables: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    classes: tuple[int, ...] | None


def check_teachers(config: ConfigDict) -> None:
    """Raises ConfigError for an unknown teacher, or bad fields in config.teacher.overrides or config.teacher.each.

    The overrides apply to all teachers except those that have their own (`has_own_fields`).
    """
    if not asks_teacher(config):
        return
    _check_each(config)
    for position, teacher in enumerate(named_teachers(config), 1):
        own = config.teacher.recipe is not None or has_own_fields(teacher.weights)
        if own and "overrides" in config.teacher.each.get(str(position), {}):
            raise ConfigError(
                f"config.teacher.each.{position}.overrides: this teacher's fields come from its recipe, workdir or program; "
                "leave them out"
            )
        check_overrides("teacher", teacher.name, {} if own else teacher.overrides)


def has_own_fields(weights: str) -> bool:
    """Whether the model's fields come with `weights`, which specify a workdir or a program."""
    return weights != "" and kind_of(weights) in ("workdir", "program")


def _check_each(config: ConfigDict) -> None:
    each, count = config.teacher.each, len(listed_names(config.teacher.name))
    for position, fields in each.items():
        where = f"config.teacher.each.{position}"
        if position not in map(str, range(1, count + 1)):
            raise ConfigError(
                f"{where}: config.teacher.name names {count} teacher(s); give the position of one, from 1 to {count}"
            )
        if not isinstance(fields, ConfigDict):
            raise ConfigError(f"{where}={fields!r}: give a dict of {', '.join(OF_EACH)}")
        for field, value in fields.items():
            if field not in OF_EACH:
                raise ConfigError(f"{where}.{field}: a single teacher has only the fields {', '.join(OF_EACH)}")
            if (complaint := OPTIONS[f"teacher.{field}"].complaint(value)) is not None:
                raise ConfigError(f"{where}.{field}={value!r}{complaint}")


def named_teachers(config: ConfigDict) -> list[NamedTeacher]:
    """Returns the teachers of a configuration, each with its fields in config.teacher.each.

    config.teacher.name and config.teacher.weights list equally many, or there is a recipe.
    """
    teacher, found = config.teacher, []
    names = listed_names(teacher.name)
    sources = [teacher.weights] if len(names) == 1 else listed_names(teacher.weights)
    for position, (name, weights) in enumerate(zip(names, sources, strict=True), 1):
        own = teacher.each.get(str(position), {})
        found.append(NamedTeacher(name, weights, **{field: own.get(field, teacher[field]) for field in OF_EACH}))
    return found


def check_heads(config: ConfigDict) -> None:
    """Raises ConfigError if training leaves a head untrained, needs one that the model does not have, or ignores its teacher."""
    kind, name, token = config.distillation.kind, config.model.name, has_distillation_token(config)
    loss = loss_kind(kind)
    if loss is None:
        return  # `validate` reports it
    if loss.needs_token and not token:
        raise ConfigError(
            f"config.distillation.kind={kind} needs a distillation token, which {name} does not have: use a model that has one "
            "(deit_..._distilled_...), or config.distillation.kind=none"
        )
    if token and kind != "none" and not loss.teaches_token and config.model.fusion != "class":
        raise ConfigError(
            f"config.distillation.kind={kind} does not train the distillation head of {name}, which "
            f"config.model.fusion={config.model.fusion} makes part of the answer: set config.model.fusion=class"
        )
    if "alpha" in loss.uses:
        _check_alpha(config, needs_teacher=loss.needs_teacher, token=token)
    if kind == "none" and token:
        plain = name.replace("_distilled", "")
        without = f"config.model.name={plain}" if plain != name else "config.model.overrides.distilled=False"
        raise ConfigError(
            f"config.distillation.kind=none does not train the distillation token of {name}, whose head gives half of each "
            f"answer: set config.distillation.kind to hard or soft (with a teacher) or to labels or labels_mean, or {without}"
        )


def _check_alpha(config: ConfigDict, *, needs_teacher: bool, token: bool) -> None:
    """Raises ConfigError for a weight of 0 or 1 that excludes the teacher or the only loss of a head."""
    name, alpha, fusion = config.model.name, config.distillation.alpha, config.model.fusion
    where = f"config.distillation.alpha={alpha:g}"
    if alpha == 0 and needs_teacher and not (config.features.pairs or config.teacher.record):
        without = "labels_class, with config.model.fusion=class" if token else "none"
        raise ConfigError(
            f"{where}: nothing would be learned from the teacher: set it above 0, or config.distillation.kind={without}"
        )
    if alpha == 0 and token and fusion != "class":
        raise ConfigError(
            f"{where} does not train the distillation head of {name}, which config.model.fusion={fusion} makes part of the "
            "answer: set it above 0, or config.model.fusion=class"
        )
    if alpha == 1 and token:
        raise ConfigError(
            f"{where} does not train the class head of {name}, which is part of every answer: set it below 1"
        )


def has_distillation_token(config: ConfigDict) -> bool:
    """Whether the configured model has a distillation token and its head."""
    try:
        return has_token(config.model.name, dict(config.model.overrides))
    except ValueError as error:
        raise ConfigError(f"config.model: {error}") from error


def _known_fields(config: ConfigDict) -> dict[str, Any]:
    try:
        return model_fields(config.model.name)
    except ValueError as error:
        raise ConfigError(f"config.model: {error}") from error
