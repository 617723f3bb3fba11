"""Losses registered by users, and their sections in a configuration."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from deit_jax.config import OPTIONS, ConfigError, default_config
from deit_jax.loss_kinds import LossKind, add, loss_kind, own_kinds
from deit_jax.options import Kind, Option
from deit_jax.registration import same_definition

_TYPES = (bool, int, float, str, tuple)


def register_loss(
    kind: str, build: Callable[..., Any], *, needs_teacher: bool = False, teaches_token: bool = False
) -> None:
    """Registers a loss, which `config.distillation.kind=<kind>` then selects.

    Args:
        kind: its name, a Python identifier, and the name of its section, `config.<kind>`, which exists when the loss is selected.
        build: a dataclass or function whose parameters all have defaults of type bool, int, float, str or tuple. They are the
            fields of the section. `build(**section)` returns the loss: a pure function `(outputs, targets, teacher_logits)` of
            `outputs`, a `ModelOutput`, `targets`, float32 `[B, K]`, and `teacher_logits`, float32 `[B, K]` or None. It returns
            `(loss, metrics)`: the mean over the batch, a floating-point scalar, and a dictionary of scalars to log (may be empty;
            `loss` is added).
        needs_teacher: whether the loss reads the teacher's logits; config.teacher.weights is then required.
        teaches_token: whether the loss trains the head of the distillation token (`outputs.distillation_logits`), if the model
            has one. If not, the loss is refused for such a model unless `config.model.fusion=class`.

    Raises:
        ValueError: the name is not an identifier, or is that of a section or another loss; or a parameter lacks such a default.
    """
    if not (isinstance(kind, str) and kind.isidentifier() and not keyword.iskeyword(kind)):
        raise ValueError(f"register_loss: {kind!r} is not a Python identifier, e.g. 'my_loss'")
    known = loss_kind(kind)
    if known is not None and (known.build is None or not same_definition(known.build, build)):
        raise ValueError(f"register_loss: there is already a loss {kind!r}: choose another name")
    if kind in default_config() or hasattr(ConfigDict, kind):
        raise ValueError(f"register_loss: config.{kind} is a part of every configuration: choose another name")
    if not callable(build):
        raise ValueError(f"register_loss: build of {kind!r} is {build!r}, not a function or class")
    fields = _defaults(kind, build)
    add(LossKind(kind, needs_teacher=needs_teacher, teaches_token=teaches_token, build=build, fields=fields))


def _defaults(kind: str, build: Callable[..., Any]) -> dict[str, Any]:
    defaults = {}
    for name, parameter in inspect.signature(build).parameters.items():
        where = f"register_loss: the parameter {name!r} of {kind!r}"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(f"{where} cannot be passed by name")
        if hasattr(ConfigDict, name):
            raise ValueError(f"{where} has a name that ConfigDict uses: choose another")
        default = parameter.default
        if parameter.annotation in (float, "float") and type(default) is int:
            default = float(default)
        if type(default) not in _TYPES:
            raise ValueError(f"{where} needs a default of type bool, int, float, str or tuple")
        kind_of_default = Kind.of_value(default)
        if not kind_of_default.fits(default):
            raise ValueError(f"{where} has the default {default!r}: give {kind_of_default.wanted}")
        defaults[name] = default
    return defaults


def options_of(config: ConfigDict) -> dict[str, Option]:
    """Returns every option of a configuration by dotted name, including those of its loss's section."""
    own = loss_kind(config.distillation.kind)
    fields = own.fields if own is not None else {}
    return OPTIONS | {f"{config.distillation.kind}.{name}": Option.of_value(value) for name, value in fields.items()}


def loss_section(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments for building the configured loss: config.distillation, or the loss's own section."""
    kind = loss_kind(config.distillation.kind)
    if kind is None or kind.build is None:
        return config.distillation.to_dict()
    given: Mapping[str, Any] = config.get(kind.name) or {}
    # Converted to the default's type: a whole number may have been given for a float, or a list for a tuple.
    return {name: type(default)(given.get(name, default)) for name, default in kind.fields.items()}


def complete_section(config: ConfigDict) -> None:
    """Adds the section of the selected loss to a configuration and its teacher's recipe, in place, with defaults where unset.

    Raises ConfigError if the section is not a dictionary, or if a loss that is not selected has one.
    """
    selected = config.distillation.kind
    for kind in own_kinds():
        name = kind.name
        if name != selected:
            if name in config:
                raise ConfigError(
                    f"config.{name} is the section of config.distillation.kind={name}, but the kind is {selected}: remove the "
                    "section, or set the kind"
                )
            continue
        section = config.get(name)
        section = ConfigDict() if section is None else section
        if not isinstance(section, ConfigDict):
            raise ConfigError(f"config.{name}={section!r}: give a dictionary of the fields of the loss")
        with config.unlocked():
            for field, default in kind.fields.items():
                if field not in section:
                    section[field] = default
            config[name] = section
    if isinstance(config.teacher.recipe, ConfigDict):
        try:
            complete_section(config.teacher.recipe)
        except ConfigError as error:
            raise ConfigError(str(error).replace("config.", "config.teacher.recipe.", 1)) from error


def forget_sections(config: ConfigDict) -> None:
    """Removes the sections of losses that are not selected, in place, after the command line has selected another loss."""
    with config.unlocked():
        for kind in own_kinds():
            if kind.name != config.distillation.kind and kind.name in config:
                del config[kind.name]
