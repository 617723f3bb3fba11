"""Where the configuration files are: a name like configs/deit.py means the same in a checkout and where a wheel was installed."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

from deit_jax.errors import UserError

_PACKAGE = Path(__file__).parents[1]


def own_configs() -> Path:
    """The folder of configuration files that come with the code: the repository's or, of an installed wheel, the package's."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def find_config(name: str) -> Path:
    """The file that `name`, as in --config=NAME:argument, means.

    It is the file of that name. Where there is none, configs/X.py is the one that comes with the code.

    Raises UserError where that is none either.
    """
    path, own = Path(name), own_configs()
    if path.is_file():
        return path
    if path.parent == Path("configs") and (own / path.name).is_file():
        return own / path.name
    known = ", ".join(f"configs/{file.name}" for file in sorted(own.glob("*.py")))
    raise UserError(f"{name}: there is no such file; those that come with deit_jax are {known}")


@functools.cache
def load_own(name: str) -> ModuleType:
    """The module configs/`name`.py that comes with the code, for configurations that start from it."""
    spec = importlib.util.spec_from_file_location(f"deit_jax_own_configs_{name}", own_configs() / f"{name}.py")
    assert spec is not None and spec.loader is not None  # the file ends in .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
