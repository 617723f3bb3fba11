"""Losses from outside: their registration, and the sections that they have in a configuration."""

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
    """Make a loss known, which `config.distillation.kind=<kind>` then picks.

    Args:
        kind: its name, a Python identifier; also that of its section of the configuration, `config.<kind>`, which is there when
            the loss is picked.
        build: a dataclass or function whose parameters all have defaults of type bool, int, float, str or tuple. These are the
            fields of the section. `build(**section)` returns the loss: a pure function `(outputs, targets, teacher_logits)` of
            `outputs`, a `ModelOutput`, `targets`, float32 `[B, K]`, and `teacher_logits`, float32 `[B, K]` or None. It returns
            `(loss, metrics)`: the mean over the batch, a floating-point scalar, and a dictionary of scalars to log (perhaps
            empty; `loss` is added).
        needs_teacher: the loss reads the teacher's logits; config.teacher.weights then has to be given.
        teaches_token: the loss trains the head of the distillation token (`outputs.distillation_logits`) where the model has one.
            A loss that does not is refused for such a model unless `config.model.fusion=class`.

    Raises:
        ValueError: the name is not an identifier, or is that of a section or of another loss; a parameter has no such default.
    """
    if not (isinstance(kind, str) and kind.isidentifier() and not keyword.iskeyword(kind)):
        raise ValueError(f"register_loss: {kind!r} is not a Python identifier, e.g. 'my_loss'")
    known = loss_kind(kind)
    if known is not None and (known.build is None or not same_definition(known.build, build)):
        raise ValueError(f"register_loss: there is a loss {kind!r} already: take another name")
    if kind in default_config() or hasattr(ConfigDict, kind):
        raise ValueError(f"register_loss: config.{kind} is a part of every configuration: take another name")
    if not callable(build):
        raise ValueError(f"register_loss: build of {kind!r} is {build!r}, not a function or class")
    add(
        LossKind(
            kind,
            needs_teacher=needs_teacher,
            teaches_token=teaches_token,
            build=build,
            fields=_defaults(kind, build),
        )
    )


def _defaults(kind: str, build: Callable[..., Any]) -> dict[str, Any]:
    found = {}
    for name, parameter in inspect.signature(build).parameters.items():
        where = f"register_loss: the parameter {name!r} of {kind!r}"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(f"{where} cannot be given by name")
        if hasattr(ConfigDict, name):
            raise ValueError(f"{where} has a name that ConfigDict takes: choose another")
        default = parameter.default
        if parameter.annotation in (float, "float") and type(default) is int:
            default = float(default)
        if type(default) not in _TYPES:
            raise ValueError(f"{where} needs a default of type bool, int, float, str or tuple")
        kind_of_default = Kind.of_value(default)
        if not kind_of_default.fits(default):
            raise ValueError(f"{where} has the default {default!r}: give {kind_of_default.wanted}")
        found[name] = default
    return found


def options_of(config: ConfigDict) -> dict[str, Option]:
    """Every option of a configuration by dotted name: those of all, and those of its own loss's section."""
    own = loss_kind(config.distillation.kind)
    fields = own.fields if own is not None else {}
    return OPTIONS | {f"{config.distillation.kind}.{name}": Option.of_value(value) for name, value in fields.items()}


def loss_section(config: ConfigDict) -> dict[str, Any]:
    """The values from which the configured loss is built: config.distillation, or the loss's own section."""
    kind = loss_kind(config.distillation.kind)
    if kind is None or kind.build is None:
        return config.distillation.to_dict()
    given: Mapping[str, Any] = config.get(kind.name) or {}
    # Of the default's type, which a whole number for a float and a list for a tuple are not.
    return {name: type(default)(given.get(name, default)) for name, default in kind.fields.items()}


def complete_section(config: ConfigDict) -> None:
    """Give a configuration, and its teacher's recipe, the section of its own loss, in place: what is not set has its default.

    Raises ConfigError if the section is not a dictionary, and for the section of a loss that is not picked.
    """
    picked = config.distillation.kind
    for kind in own_kinds():
        name = kind.name
        if name != picked:
            if name in config:
                raise ConfigError(
                    f"config.{name} is the section of config.distillation.kind={name}, but the kind is {picked}: remove the "
                    "section, or set the kind"
                )
            continue
        section = config.get(name)
        if section is None:
            section = ConfigDict()
        elif not isinstance(section, ConfigDict):
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
    """Remove the sections of losses that are not picked, in place: the command line has picked another than the file."""
    with config.unlocked():
        for kind in own_kinds():
            if kind.name != config.distillation.kind and kind.name in config:
                del config[kind.name]
