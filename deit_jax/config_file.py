"""Loads a configuration from a user's file and applies `--config.FIELD=VALUE` from the command line."""

from __future__ import annotations

import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from deit_jax.config import OPTIONS, ConfigError, default_config, listed_names
from deit_jax.config_check import missing_field
from deit_jax.config_losses import complete_section, forget_sections
from deit_jax.config_model import OF_EACH, check_overrides, overridable
from deit_jax.data.known_sets import known_set
from deit_jax.errors import UserError
from deit_jax.loss_kinds import loss_kind
from deit_jax.models.registry import list_models, model_fields
from deit_jax.options import Kind, is_bool
from deit_jax.plugins import import_configured

_MODULE = "config_file"  # the name of the file's module
_LONGEST = 300  # characters quoted from another library's message
_RECIPE = "teacher.recipe."  # the prefix of the fields of a nested configuration
_OVERRIDES = r"(model|teacher)\.overrides\.(\w+)"
_EACH = r"teacher\.each\.([^.]+)\.(\w+)"
_EXTRA = r"evaluation\.extra\.([^.]+)\.(\w+)"


class ConfigFileError(UserError):
    """A configuration file that returns no configuration. The message is one line: file, line, and what is wrong."""


def load_config(argument: str) -> ConfigDict:
    """Runs `get_config` of --config=FILE[:ARGUMENT] and returns the configuration, locked.

    Raises ConfigFileError if that fails; a UserError raised by the file is passed on.
    """
    name, *arguments = argument.split(":", 1)
    try:
        spec = importlib.util.spec_from_file_location(_MODULE, name)
        if spec is None or spec.loader is None:
            raise ConfigFileError(f"{name} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[_MODULE] = module  # where dataclasses and pickle look up what the file defines
        spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise ConfigFileError(
                f"{name} has no function get_config that returns a configuration (see configs/deit.py)"
            )
        config = module.get_config(*arguments)
    except UserError:
        raise
    except SyntaxError as error:
        shown = name if Path(error.filename or name).resolve() == Path(name).resolve() else error.filename
        raise ConfigFileError(f"{shown}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).resolve() == Path(name).resolve()]
        where = f"{name}, line {own[-1].lineno}" if own else name
        raise ConfigFileError(f"{where}: {_describe(error)}") from error
    if not isinstance(config, ConfigDict):
        returned = "nothing" if config is None else f"a {type(config).__name__}"
        raise ConfigFileError(f"{name}: get_config returns {returned}, not a ConfigDict (missing `return config`?)")
    missing = missing_field(config)
    if missing is not None:
        raise ConfigFileError(f"{name}: the configuration has no field {missing!r}: start from default_config()")
    return config.lock()


def _describe(error: Exception) -> str:
    inner = error
    while inner.args and isinstance(inner.args[0], Exception):  # ml_collections nests exceptions
        inner = inner.args[0]
    # A KeyError's text is the repr of its message.
    text = " ".join(str(inner.args[0] if isinstance(inner, KeyError) and inner.args else inner).split())
    # Messages of ml_collections for writing to a locked ConfigDict (followed by its content), and for reading.
    field = re.match(r"Key \"(\w+)\" does not exist|'(\w+)' Did you mean|'(\w+)'$", text)
    if field and isinstance(inner, KeyError | AttributeError):
        key = next(group for group in field.groups() if group)
        leaves = {name.split(".")[i]: name for name in reversed(OPTIONS) for i in range(name.count(".") + 1)}
        near = difflib.get_close_matches(key, leaves, n=1)
        hint = f"; the nearest is {near[0]!r} (config.{leaves[near[0]]})" if near else ""
        return f"there is no field {key!r}{hint}"
    return f"{type(error).__name__}: {text[:_LONGEST]}" if text else type(error).__name__


class Override(NamedTuple):
    """The dotted name of a field and the text of its value."""

    key: str
    text: str


def split(argv: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Splits a command line into the part without `--config.FIELD`, and these overrides in order.

    --config.FIELD VALUE means --config.FIELD=VALUE. A boolean field needs no value, and --noconfig.FIELD means False. A field
    of an unknown section may belong to a plugin; `apply` checks it.
    Raises UserError for a field that no configuration has, and for a missing value.
    """
    rest: list[str] = []
    overrides: list[Override] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":  # no flags after this
            rest += [word, *words]
            break
        match = re.match(r"--?(no)?config\.([^=]+)(=)?", word)
        if match is None:
            rest.append(word)
            continue
        key = re.sub(r"\[([\"'])(.*?)\1\]", r".\2", match[2])  # published['a name']
        text = word[match.end() :]
        kind = _kind_by_name(key)
        if match[1]:
            if match[3] or kind is None or kind.base is not bool:
                raise UserError(f"{word}: --no is for a field that is True or False, and takes no value")
            text = "False"
        elif not match[3]:
            following = words[0] if words else "--"
            if kind is not None and kind.base is bool:
                text = words.pop(0) if is_bool(following) else "True"
            elif following.startswith("-") and not re.match(r"-[\d.]", following):
                raise UserError(f"{word}: the value is missing, as in {word}=VALUE")
            else:
                text = words.pop(0)
        overrides.append(Override(key, text))
    return rest, overrides


def apply(config: ConfigDict, overrides: Sequence[Override]) -> None:
    """Sets fields of a configuration in place.

    The last value of a field wins; several single values of a tuple are joined. The order on the command line does not matter:
    plugins are set and imported first, then names of models and losses and whole sections, then fields whose type depends on the
    model or the loss, i.e. overrides and the loss's section. The weights or answers of a teacher replace its recipe. The
    configuration's published figures are removed if the number of classes or the name of the data set changes.

    Raises UserError, in one line, for an unknown field or a value of the wrong type, and ConfigError for a plugin that cannot be
    imported.
    """
    by_key: dict[str, list[str]] = {}
    for key, text in overrides:
        by_key[key] = [*by_key.pop(key, []), text]
    plugins = {key: by_key.pop(key) for key in list(by_key) if _short(key) == "plugins"}
    fixed = {key: by_key.pop(key) for key in list(by_key) if _short(key) in OPTIONS}
    _set(config, plugins)
    import_configured(config, say=False)
    compared = _what_figures_are_of(config)
    _set(config, fixed)
    if _what_figures_are_of(config) != compared and "published" not in fixed:
        config.published = ConfigDict()  # figures of the command line are set below
    _replace_recipe(config, by_key | fixed)
    _update_loss_sections(config, selected=any(_short(key) == "distillation.kind" for key in fixed))
    _set(config, by_key)


def _what_figures_are_of(config: ConfigDict) -> tuple[int | None, object]:
    """Returns the number of classes and the data set for which a configuration file has published figures."""
    return config.num_classes, known_set(config.data.name) or config.data.name


def _replace_recipe(config: ConfigDict, given: Mapping[str, Sequence[str]]) -> None:
    """Removes the teacher's recipe if the command line sets the teacher's weights or answers.

    If it also sets a field of the recipe, the recipe stays and `validate` refuses the combination.
    """
    replaced = any(given.get(f"teacher.{name}", [""])[-1] for name in ("weights", "answers"))
    if replaced and not any(key.startswith(_RECIPE) for key in given):
        with config.teacher.ignore_type():
            config.teacher.recipe = None


def _update_loss_sections(config: ConfigDict, *, selected: bool) -> None:
    """Adds the section of the loss; if the command line selected it, removes the sections of other losses."""
    recipe: Any = config
    while selected and isinstance(recipe, ConfigDict):
        forget_sections(recipe)
        recipe = recipe.teacher.recipe
    complete_section(config)


def _set(config: ConfigDict, by_key: Mapping[str, Sequence[str]]) -> None:
    for key, texts in by_key.items():
        section, name, kind = _place(config, key)
        try:
            value = kind.parse(texts[-1])
            if kind.base is tuple and len(texts) > 1:
                values = [kind.parse(text) for text in texts]
                if all(value is not None and len(value) == 1 for value in values):
                    value = tuple(item for value in values for item in value)
            if name == "recipe" and value is not None:
                raise ValueError(f"give None, or set the recipe's fields, e.g. --config.{key}.train.epochs")
            none = texts[-1].strip().lower() == "none" and kind.base is str and not kind.optional
            if none and not (_allows_none(name) or loss_kind(_short(key).partition(".")[0])):  # a loss's texts are free
                raise ValueError(f"give a text; for none, leave it empty: --config.{key}=")
        except ValueError as error:
            raise UserError(f"--config.{key}={texts[-1]}: {error}") from error
        with section.unlocked(), section.ignore_type():  # the type is checked above
            section[name] = value


def _allows_none(name: str) -> bool:
    """Whether "none" is a choice of a field, by its name without sections: teacher.overrides.remat is like model.remat."""
    return any("none" in each.known_choices() for key, each in OPTIONS.items() if key.rpartition(".")[2] == name)


def _short(key: str) -> str:
    """The name of a field without the prefix of nested teachers' recipes."""
    return re.sub(rf"^({re.escape(_RECIPE)})+", "", key)


def _kind_by_name(key: str) -> Kind | None:
    """The kind of a field that every configuration has; None if it depends on the section. Raises UserError if it is unknown."""
    short = _short(key)
    if short in OPTIONS:
        return OPTIONS[short].kind
    section, dot, field = short.partition(".")
    of_plugin = dot and section.isidentifier() and field.isidentifier() and section not in default_config()
    if of_plugin or re.fullmatch(rf"{_OVERRIDES}|{_EACH}|{_EXTRA}|published\..+", short):
        return None
    raise _unknown(key)


def _unknown(key: str, own: Collection[str] = ()) -> UserError:
    """The error for an unknown field. own: the fields of the configuration's loss."""
    short = _short(key)
    inside = [name for name in OPTIONS if name.startswith(f"{short}.")]
    if inside:
        return UserError(f"--config.{key} is a section: set its fields, e.g. --config.{inside[0]}")
    near = difflib.get_close_matches(short, own or OPTIONS, n=1, cutoff=0.0)[0]
    if any(short.rpartition(".")[2] in model_fields(model) for model in list_models()):
        near = f"model.overrides.{short.rpartition('.')[2]}"
    outer = key.removesuffix(short)
    return UserError(f"--config.{key}: there is no such field; the nearest is --config.{outer}{near}")


def _place(config: ConfigDict, key: str) -> tuple[ConfigDict, str, Kind]:
    """Returns the section that holds a field, the field's name there and its kind."""
    outer = ""
    while key.startswith(f"{outer}{_RECIPE}"):
        outer += _RECIPE
        if config.teacher.recipe is None:
            raise UserError(f"--config.{key}: config.{outer[:-1]} is None; this configuration does not train a teacher")
        config = config.teacher.recipe
    short = key.removeprefix(outer)
    if short in OPTIONS:
        *sections, name = short.split(".")
        for section in sections:
            config = config[section]
        return config, name, OPTIONS[short].kind
    if match := re.fullmatch(_OVERRIDES, short):
        try:
            return config[match[1]].overrides, match[2], _kind_in_model(config, match[1], match[2])
        except ConfigError as error:
            raise UserError(str(error).replace("config.", f"config.{outer}")) from error
    if match := re.fullmatch(_EACH, short):
        if match[2] not in OF_EACH:
            raise UserError(f"--config.{key}: a single teacher has only the fields {', '.join(OF_EACH)}")
        if match[1] not in config.teacher.each:
            with config.teacher.each.unlocked():
                config.teacher.each[match[1]] = ConfigDict()
        return config.teacher.each[match[1]], match[2], OPTIONS[f"teacher.{match[2]}"].kind
    if match := re.fullmatch(_EXTRA, short):
        extra = config.evaluation.extra
        if match[1] not in extra:
            raise UserError(
                f"--config.{key}: config.evaluation.extra has no set {match[1]!r}; this configuration has "
                f"{', '.join(extra) or 'none'}"
            )
        if match[2] not in extra[match[1]]:
            raise UserError(f"--config.{key}: {match[1]!r} has the fields {', '.join(extra[match[1]])}")
        return extra[match[1]], match[2], Kind(str)
    if not short.startswith("published."):
        return _place_in_loss(config, key, outer)
    return config.published, short.removeprefix("published."), Kind(float)


def _place_in_loss(config: ConfigDict, key: str, outer: str) -> tuple[ConfigDict, str, Kind]:
    """Like `_place`, for a field in the section of a registered loss."""
    section, _, name = key.removeprefix(outer).partition(".")
    loss = loss_kind(section)
    if loss is None or loss.build is None:
        raise _unknown(key)
    if section != config.distillation.kind:
        raise UserError(
            f"--config.{key}: config.{outer}distillation.kind is {config.distillation.kind}: set it to {section} to use its "
            "fields"
        )
    if name not in loss.fields:
        raise _unknown(key, [f"{section}.{field}" for field in loss.fields])
    return config[section], name, Kind.of_value(loss.fields[name])


def _kind_in_model(config: ConfigDict, section: str, field: str) -> Kind:
    """The kind of a field of model.overrides or teacher.overrides in the configured model."""
    names = listed_names(config[section].name)
    for name in names:  # some of several teachers may be workdirs, which take no overrides
        known: dict[str, Any] = overridable(section, name)
        if field in known:
            return Kind.of_value(known[field])
    check_overrides(section, names[0], {field: None})
    raise AssertionError(f"{field} is in {names[0]}")
