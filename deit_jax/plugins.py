"""config.plugins: the user's modules, imported before the names in a configuration are checked."""

from __future__ import annotations

import importlib
import importlib.util
import keyword
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.config import ConfigError
from deit_jax.errors import raised_outside

_imported: dict[str, str] = {}  # module names and their files
_printed: set[str] = set()


def import_plugins(names: Sequence[str], where: str, *, workdir: Path | None = None, say: bool = True) -> None:
    """Imports modules by name, except those that an earlier call has imported.

    Args:
        names: dotted names such as `my_package.my_module`.
        where: the source of the names for messages, e.g. "config.plugins".
        workdir: the run whose record or command has the names. Code in it, or in a run that contains it, is not imported: reading
            a workdir must not run code that came with it.
        say: print a line for each new module; False: `say_plugins` does so later.

    Raises:
        ConfigError: a name is not a module name, is not found, or is in the workdir; or a module raises an exception.
    """
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where}={names!r}: give module names, separated by commas")
    for name in names:
        if not all(part.isidentifier() and not keyword.iskeyword(part) for part in name.split(".")):
            raise ConfigError(
                f"{where}: {name!r} is not a module name: give one that Python can import, e.g. my_package.my_module, and put "
                "its folder on PYTHONPATH"
            )
        if name not in _imported:
            _imported[name] = _import(name, where, workdir)
        elif workdir is not None:
            _refuse_inside(name, _imported[name], where, workdir)
    if say:
        say_plugins()


def import_named(name: str, where: str) -> ModuleType:
    """A module that the command line names and that is not a plugin: nothing else imports it.

    Raises ConfigError as `import_plugins`.
    """
    _import(name, where, None, "module")
    return sys.modules[name]


def import_configured(config: ConfigDict, *, say: bool = True) -> None:
    """Imports the plugins of a configuration and of its teacher's recipe. Raises ConfigError as `import_plugins`."""
    import_plugins(config.plugins, "config.plugins", say=say)
    recipe, prefix = config.teacher.recipe, "config.teacher.recipe"
    while isinstance(recipe, ConfigDict):
        import_plugins(recipe.plugins, f"{prefix}.plugins", say=say)
        recipe, prefix = recipe.teacher.recipe, f"{prefix}.teacher.recipe"


def import_recorded(record: dict[str, Any], workdir: Path) -> None:
    """Imports the plugins that a workdir's config.json names. Raises ConfigError as `import_plugins`."""
    import_plugins(record["config"].get("plugins", ()), f"plugins of {workdir}/config.json", workdir=workdir)


def say_plugins() -> None:
    """Prints a line for each imported plugin that has not been printed yet."""
    for name, origin in _imported.items():
        if name not in _printed:
            _printed.add(name)
            console.say(f"plugin {name}, from {origin}")


class ImportedPlugins:
    """Unpickling this imports the plugins of the process that pickled it, before what was pickled after it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _import_pickled, (tuple(_imported),)


def _import_pickled(names: Sequence[str]) -> ImportedPlugins:
    import_plugins(names, "config.plugins", say=False)
    return ImportedPlugins()


def _import(name: str, where: str, workdir: Path | None, what: str = "plugin") -> str:
    """Imports a module and returns its file."""
    origin = name
    if name in sys.modules:  # imported by other code, so nothing runs now
        origin = getattr(sys.modules[name], "__file__", None) or name
        if workdir is not None:
            _refuse_inside(name, origin, where, workdir)
        return origin
    for spec in _specs(name, where, what):
        origin = spec.origin or origin
        if workdir is not None and spec.origin is not None:
            _refuse_inside(name, spec.origin, where, workdir)
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{where}: the {what} {name} raises {raised_outside(error)}; fix it") from error
    return origin


def _specs(name: str, where: str, what: str) -> Iterator[ModuleSpec]:
    """Yields the specs of the packages around a module and of the module, without running code. Raises ConfigError if missing."""
    spec: ModuleSpec | None = None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        part = ".".join(parts[:count])
        if count == 1:
            spec = importlib.util.find_spec(part)
        else:  # find_spec would run the package
            folders = None if spec is None else spec.submodule_search_locations
            spec = None if folders is None else PathFinder.find_spec(part, list(folders))
        if spec is None:
            missing = repr(part) if part == name else f"{part!r} of the {what} {name}"
            raise ConfigError(f"{where}: there is no module {missing}: install it, or put its folder on PYTHONPATH")
        yield spec


def _refuse_inside(name: str, origin: str, where: str, workdir: Path) -> None:
    """Raises ConfigError for a file in the workdir, or in a run that contains it (a student's contains its teacher's)."""
    around = [
        folder
        for folder in Path(os.path.abspath(workdir)).parents
        if (folder / "config.json").exists() and (folder / "checkpoints").is_dir()
    ]
    resolvers: tuple[Callable[[Any], str], ...] = (os.path.abspath, os.path.realpath)
    for folder in (workdir, *around):
        for resolve in resolvers:
            if Path(resolve(origin)).is_relative_to(resolve(folder)):
                raise ConfigError(
                    f"{where}: the plugin {name} is in the workdir ({origin}), where no code is imported from: move it elsewhere"
                )
