"""Paths as people type them: `~` is the home folder, wherever one is given."""

from __future__ import annotations

import os
from pathlib import Path

from ml_collections import ConfigDict

from deit_jax.cache_folder import has_home
from deit_jax.config import MUST_BE_GIVEN, listed_names
from deit_jax.errors import UserError

_NOT_PATHS = ("", "pretrained", "embedded", "random", MUST_BE_GIVEN)


def typed_path(flag: str, text: str) -> str:
    """The path that `text`, given to `flag`, means: with the home folder for ~ or ~user.

    Raises UserError where there is no such home, and for spaces or quotation marks around a path, which a shell or a script left
    there. What exists under the very name is taken as it is.
    """
    if os.path.lexists(text):
        return text
    shown = f"{flag}={text}"
    if text != text.strip():
        raise UserError(f"{flag}={text!r} begins or ends with a space: give the path without it")
    if len(text) > 1 and text[0] in "'\"" and text[-1] == text[0]:
        raise UserError(f"{shown}: the quotation marks would be a part of the name, give the path without them")
    if not text.startswith("~"):
        return text
    path = os.path.expanduser(text)
    if path.startswith("~"):
        user = text[1:].partition("/")[0]
        missing = f"there is no user {user!r}" if user else "there is no home folder (HOME is not set)"
        raise UserError(f"{shown}: {missing}; for a file or folder of that name, write ./{text}")
    return path


def expand_paths(config: ConfigDict, section: str = "config") -> None:
    """Put the home folder for ~ into every path of a configuration, in place; raises UserError as `typed_path`.

    parallel.compilation_cache is only checked. It keeps its ~, because it does not change a result: the user's home may be
    another next time, and a user without a home does without the cache.
    """
    data = config.data
    data.path = _expanded(f"--{section}.data.path", data.path)
    if data.index not in ("", "auto"):
        data.index = typed_path(f"--{section}.data.index", data.index)
    cache = config.parallel.compilation_cache
    if cache and (has_home() or cache.partition("/")[0] != "~"):
        typed_path(f"--{section}.parallel.compilation_cache", cache)
    config.model.weights = _expanded(f"--{section}.model.weights", config.model.weights)
    teacher = config.teacher
    alone = len(listed_names(teacher.name)) == 1  # the weights of one may have a comma in their name
    parts = [teacher.weights] if alone else listed_names(teacher.weights)
    expanded = [_expanded(f"--{section}.teacher.weights", part) for part in parts]
    if expanded != parts:  # else the text stays as it is, because a workdir has recorded it so
        teacher.weights = ",".join(expanded)
    for name, entry in config.evaluation.extra.items():
        for field in ("path", "labels"):
            if isinstance(entry, ConfigDict) and isinstance(entry.get(field), str):
                entry[field] = _expanded(f"--{section}.evaluation.extra.{name}.{field}", entry[field])
    if isinstance(teacher.recipe, ConfigDict):
        expand_paths(teacher.recipe, f"{section}.teacher.recipe")


def folder(flag: str, text: str) -> Path:
    """The folder that `text` means, which need not be there yet. Raises UserError as `typed_path`, and if a file is there."""
    path = Path(typed_path(flag, text))
    if path.exists() and not path.is_dir():
        raise UserError(f"{flag}={text} is a file: give a folder")
    return path


def _expanded(flag: str, text: str) -> str:
    return text if text.strip() in _NOT_PATHS else typed_path(flag, text)
