"""Finds the file of --config=FILE:ARGUMENT, in a checkout or an installed wheel, and parses the argument."""

from __future__ import annotations

import difflib
import functools
import importlib.util
from pathlib import Path
from types import ModuleType

from deit_jax.config import ConfigError
from deit_jax.errors import UserError

_PACKAGE = Path(__file__).parents[1]


def own_configs() -> Path:
    """Returns the folder of the included configuration files: the repository's, or the package's in an installed wheel."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def find_config(name: str) -> Path:
    """Returns the file for `name` in --config=NAME:argument: that file, or else, for configs/X.py, the included one.

    Raises UserError if there is neither.
    """
    path, own = Path(name), own_configs()
    if path.is_file():
        return path
    if path.parent == Path("configs") and (own / path.name).is_file():
        return own / path.name
    known = ", ".join(f"configs/{file.name}" for file in sorted(own.glob("*.py")))
    raise UserError(f"{name}: there is no such file; deit_jax includes {known}")


@functools.cache
def load_own(name: str) -> ModuleType:
    """Imports the included configs/`name`.py, for configurations that start from it."""
    spec = importlib.util.spec_from_file_location(f"deit_jax_own_configs_{name}", own_configs() / f"{name}.py")
    assert spec is not None and spec.loader is not None  # the file ends in .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pick(file: str, argument: str, **groups: tuple[str, ...]) -> dict[str, str]:
    """Returns the word of each group in a comma-separated argument, e.g. of configs/deit.py:base,500; "" if there is none.

    Words may be in any order; no word is in two groups. `file` is the configuration's name, for messages.

    Raises ConfigError for an unknown word, with the nearest known one, and for two words of one group.
    """
    picked = dict.fromkeys(groups, "")
    for word in filter(None, argument.split(",")):
        group = next((name for name, words in groups.items() if word in words), None)
        if group is None:
            known = [known for words in groups.values() for known in words]
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]
            choices = "; ".join(" | ".join(words) for words in groups.values())
            raise ConfigError(
                f"configs/{file}:{argument}: {word!r} is unknown, the nearest is {near!r}; choose from {choices}"
            )
        if picked[group]:
            raise ConfigError(f"configs/{file}:{argument}: {picked[group]!r} and {word!r} exclude each other")
        picked[group] = word
    return picked
