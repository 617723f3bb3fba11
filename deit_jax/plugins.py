"""config.plugins: the user's modules that are imported before a configuration's names are checked."""

from __future__ import annotations

import importlib
import importlib.util
import keyword
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.config import ConfigError
from deit_jax.errors import raised_outside

_imported: dict[str, str] = {}  # module names, and where they are from
_said: set[str] = set()


def import_plugins(names: Sequence[str], where: str, *, workdir: Path | None = None, say: bool = True) -> None:
    """Import modules by name; those that an earlier call has imported are left as they are.

    Args:
        names: importable, with dots: `my_package.my_module`.
        where: who names them, for messages, e.g. "config.plugins".
        workdir: the run whose record or command names them. Code in it, or in a run that holds it, is not run: reading a workdir
            must not run what came with it.
        say: print a line for each module of which none was printed; False: `say_plugins` does later.

    Raises:
        ConfigError: a name is not that of a module, is not found, or is in the workdir; or a module raises.
    """
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where}={names!r}: give names of modules, separated by commas")
    for name in names:
        if not all(part.isidentifier() and not keyword.iskeyword(part) for part in name.split(".")):
            raise ConfigError(
                f"{where}: {name!r} is not the name of a module: give one that Python imports, e.g. my_package.my_module, and "
                "put its folder on PYTHONPATH"
            )
        if name not in _imported:
            _imported[name] = _import(name, where, workdir)
        elif workdir is not None:
            _refuse_inside(name, _imported[name], where, workdir)
    if say:
        say_plugins()


def import_configured(config: ConfigDict, *, say: bool = True) -> None:
    """Import the plugins of a configuration and of its teacher's recipe. Raises ConfigError as `import_plugins`."""
    import_plugins(config.plugins, "config.plugins", say=say)
    recipe, prefix = config.teacher.recipe, "config.teacher.recipe"
    while isinstance(recipe, ConfigDict):
        import_plugins(recipe.plugins, f"{prefix}.plugins", say=say)
        recipe, prefix = recipe.teacher.recipe, f"{prefix}.teacher.recipe"


def import_recorded(record: dict[str, Any], workdir: Path) -> None:
    """Import the plugins that a workdir's config.json names. Raises ConfigError as `import_plugins`."""
    import_plugins(record["config"].get("plugins", ()), f"plugins of {workdir}/config.json", workdir=workdir)


def say_plugins() -> None:
    """Print a line for each imported plugin of which none was printed."""
    for name, origin in _imported.items():
        if name not in _said:
            _said.add(name)
            console.say(f"plugin {name}, from {origin}")


class ImportedPlugins:
    """The plugins of this process: a process that unpickles it imports them, before what is pickled after it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _imported_again, (tuple(_imported),)


def _imported_again(names: Sequence[str]) -> ImportedPlugins:
    import_plugins(names, "config.plugins", say=False)
    return ImportedPlugins()


def _import(name: str, where: str, workdir: Path | None) -> str:
    """Import a module; returns its file."""
    origin = name
    if name in sys.modules:  # by whoever called: nothing is run any more
        origin = getattr(sys.modules[name], "__file__", None) or name
        if workdir is not None:
            _refuse_inside(name, origin, where, workdir)
        return origin
    for spec in _specs(name, where):
        origin = spec.origin or origin
        if workdir is not None and spec.origin is not None:
            _refuse_inside(name, spec.origin, where, workdir)
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{where}: the plugin {name} raises {raised_outside(error)}; fix that") from error
    return origin


def _specs(name: str, where: str) -> Iterator[ModuleSpec]:
    """Where a module and the packages around it are found, outermost first, without running any. Raises ConfigError if not."""
    found: ModuleSpec | None = None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        part = ".".join(parts[:count])
        if count == 1:
            found = importlib.util.find_spec(part)
        else:  # find_spec would run the package
            inside = None if found is None else found.submodule_search_locations
            found = None if inside is None else PathFinder.find_spec(part, list(inside))
        if found is None:
            missing = repr(part) if part == name else f"{part!r} of the plugin {name}"
            raise ConfigError(
                f"{where}: there is no module {missing}: install it, or put the folder that it is in on PYTHONPATH"
            )
        yield found


def _refuse_inside(name: str, origin: str, where: str, workdir: Path) -> None:
    """Refuse a file in the workdir, or in a run that holds it (as that of a student holds its teacher's)."""
    around = [
        folder
        for folder in Path(os.path.abspath(workdir)).parents
        if (folder / "config.json").exists() and (folder / "checkpoints").is_dir()
    ]
    for folder in (workdir, *around):
        for path, outer in ((os.path.abspath(origin), os.path.abspath(folder)), _real(origin, folder)):
            if Path(path).is_relative_to(outer):
                raise ConfigError(
                    f"{where}: the plugin {name} is in the workdir ({origin}), from where no code is imported: move it elsewhere"
                )


def _real(*paths: str | Path) -> tuple[str, str]:
    first, second = (os.path.realpath(path) for path in paths)
    return first, second
