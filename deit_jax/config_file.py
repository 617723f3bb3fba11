"""What a configuration may hold, and what is wrong with a user's file, in one line: which file, which line, what."""

from __future__ import annotations

import difflib
import importlib.util
import re
import sys
import traceback
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from deit_jax.config import default_config
from deit_jax.errors import UserError
from deit_jax.reporting.fields import flat

_MODULE = "config_file"  # the name that the file's module has
_LONGEST = 300  # characters of another library's message


def field_names() -> list[str]:
    """The dotted names of all fields that a configuration has by default."""
    return [name for name, _ in flat(default_config().to_dict())]


class ConfigFileError(UserError):
    """A configuration file that gives no configuration. The message is one line: which file, which line, what."""


def load_config(argument: str) -> ConfigDict:
    """The configuration of --config=FILE[:ARGUMENT], locked, by running the file's `get_config`.

    Raises ConfigFileError if there is none, and the file's own UserError as it is.
    """
    name, *arguments = argument.split(":", 1)
    try:
        spec = importlib.util.spec_from_file_location(_MODULE, name)
        if spec is None or spec.loader is None:
            raise ConfigFileError(f"{name} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[_MODULE] = module  # where dataclasses and pickle look for what the file defines
        spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise ConfigFileError(
                f"{name} has no function get_config, which returns the configuration (as configs/deit.py has)"
            )
        config = module.get_config(*arguments)
    except UserError:
        raise
    except SyntaxError as error:
        raise ConfigFileError(f"{_shown(error.filename or name, name)}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).resolve() == Path(name).resolve()]
        where = f"{name}, line {own[-1].lineno}" if own else name
        raise ConfigFileError(f"{where}: {_what(error, field_names())}") from error
    if not isinstance(config, ConfigDict):
        returned = "nothing" if config is None else f"a {type(config).__name__}"
        raise ConfigFileError(
            f"{name}: get_config returns {returned}, not a ConfigDict (is a `return config` missing?)"
        )
    missing = missing_field(config)
    if missing is not None:
        raise ConfigFileError(f"{name}: the configuration has no field {missing!r}: start from default_config()")
    return config.lock()


def missing_field(config: ConfigDict) -> str | None:
    """The dotted name of a field of `default_config` that a configuration, or its teacher's recipe, lacks; None if it has all."""
    missing = next((name for name in field_names() if not _has(config, name)), None)
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


def _shown(path: str, name: str) -> str:
    return name if Path(path).resolve() == Path(name).resolve() else path


def _what(error: Exception, known_fields: list[str]) -> str:
    inner = error
    while inner.args and isinstance(inner.args[0], Exception):  # ml_collections puts one into another
        inner = inner.args[0]
    # A KeyError's text is the repr of its message.
    text = " ".join(str(inner.args[0] if isinstance(inner, KeyError) and inner.args else inner).split())
    # ml_collections, of a locked ConfigDict, whose content follows; and of one that is read.
    field = re.match(r"Key \"(\w+)\" does not exist|'(\w+)' Did you mean|'(\w+)'$", text)
    if field and isinstance(inner, KeyError | AttributeError):
        key = next(group for group in field.groups() if group)
        leaves = {name.split(".")[i]: name for name in reversed(known_fields) for i in range(name.count(".") + 1)}
        near = difflib.get_close_matches(key, leaves, n=1)
        return f"there is no field {key!r}" + (
            f"; the nearest is {near[0]!r} (config.{leaves[near[0]]})" if near else ""
        )
    return f"{type(error).__name__}: {text[:_LONGEST]}" if text else type(error).__name__
