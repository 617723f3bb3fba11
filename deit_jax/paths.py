"""Paths as users type them: `~` means the home folder everywhere."""

from __future__ import annotations

import os
from pathlib import Path

from ml_collections import ConfigDict

from deit_jax.cache_folder import has_home
from deit_jax.config import MUST_BE_GIVEN, listed_names
from deit_jax.errors import UserError
from deit_jax.storage.bucket import bucket_address
from deit_jax.storage.files import status

_NOT_PATHS = ("", "pretrained", "embedded", "random", MUST_BE_GIVEN)


def typed_path(flag: str, text: str) -> str:
    """Returns the path that `text`, the value of `flag`, means, with ~ and ~user expanded.

    A path that exists literally is returned unchanged. Raises UserError if there is no such home, and for spaces or quotation
    marks around a path, which a shell or script has left there.
    """
    if os.path.lexists(text):
        return text
    if text != text.strip():
        raise UserError(f"{flag}={text!r} starts or ends with a space: remove it")
    if len(text) > 1 and text[0] in "'\"" and text[-1] == text[0]:
        raise UserError(f"{flag}={text}: remove the quotation marks, which would be part of the name")
    if not text.startswith("~"):
        return text
    path = os.path.expanduser(text)
    if path.startswith("~"):
        user = text[1:].partition("/")[0]
        missing = f"there is no user {user!r}" if user else "there is no home folder (HOME is not set)"
        raise UserError(f"{flag}={text}: {missing}; for a file or folder with that name write ./{text}")
    return path


def expand_paths(config: ConfigDict, section: str = "config") -> None:
    """Expands ~ in every path of a configuration, in place. Raises UserError as `typed_path`.

    parallel.compilation_cache is only checked and keeps its ~: it does not affect results, the home may be another one when the
    run is resumed, and a user without a home has no cache.
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
    alone = len(listed_names(teacher.name)) == 1  # the weights of a single teacher may contain a comma
    parts = [teacher.weights] if alone else listed_names(teacher.weights)
    expanded = [_expanded(f"--{section}.teacher.weights", part) for part in parts]
    if expanded != parts:  # else keep the text as a workdir has recorded it
        teacher.weights = ",".join(expanded)
    for field in ("answers", "record"):
        if isinstance(teacher[field], str):
            teacher[field] = _expanded(f"--{section}.teacher.{field}", teacher[field])
    for name, entry in config.evaluation.extra.items():
        for field in ("path", "labels"):
            if isinstance(entry, ConfigDict) and isinstance(entry.get(field), str):
                entry[field] = _expanded(f"--{section}.evaluation.extra.{name}.{field}", entry[field])
    if isinstance(teacher.recipe, ConfigDict):
        expand_paths(teacher.recipe, f"{section}.teacher.recipe")


def folder(flag: str, text: str) -> Path:
    """Returns the folder that `text` means, which may not exist.

    Raises UserError as `typed_path`, for a file, and UnreadableError for a path that the system refuses.
    """
    path = Path(typed_path(flag, text))
    if status(path) is not None and not path.is_dir():
        raise UserError(f"{flag}={text} is a file: give a folder")
    return path


def run_place(flag: str, text: str) -> Path | str:
    """Returns the folder, as `folder` does, or the address of a run in a bucket (`bucket_address`). Raises UserError."""
    try:
        address = bucket_address(text) if "://" in text else None
    except UserError as error:
        raise UserError(f"{flag}={error}") from error
    return folder(flag, text) if address is None else address


def _expanded(flag: str, text: str) -> str:
    return text if text.strip() in _NOT_PATHS else typed_path(flag, text)
