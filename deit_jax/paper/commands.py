"""The paper's rows as commands: `run.py --list`."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from deit_jax.errors import UserError
from deit_jax.paper.rows import Row, rows_of
from deit_jax.recipes.files import find_config

# In the order in which they are listed; the quick start is none of the paper's.
FILES = ("deit", "teacher", "distillation", "finetune", "transfer", "ablation", "search")


@dataclasses.dataclass(frozen=True)
class Command:
    """A row with the file that it is of."""

    file: str  # "deit"
    row: Row
    get_config: Callable[[str], ConfigDict]

    @property
    def name(self) -> str:
        """What --config= takes."""
        return f"configs/{self.file}.py:{self.row.argument}"

    def config(self) -> ConfigDict:
        """The row's configuration."""
        return self.get_config(self.row.argument)


def load_commands() -> list[Command]:
    """All rows of the files that --config=configs/FILE.py means here, by tables, figures and sections.

    Raises UserError where one of them is not of this package.
    """
    commands = []
    for file in FILES:
        path = find_config(f"configs/{file}.py")
        spec = importlib.util.spec_from_file_location(f"deit_jax_configs_{file}", path)
        assert spec is not None and spec.loader is not None  # the file is there and ends in .py
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, "publish"):
            raise UserError(f"--list: {path} is of another project and publishes no row; call it in another folder")
        commands += [Command(file, row, module.get_config) for row in rows_of(file)]
    return sorted(commands, key=lambda command: _rank(command.row.where))


def _rank(where: str) -> tuple[int, int]:
    kind, number = where.split()
    return ("Table", "Figure", "Section").index(kind), int(number)


def select(commands: Sequence[Command], wanted: str) -> list[Command]:
    """Those of a table, figure, section or file: "table8", "figure 3", "ablation"; "all" of them.

    Raises UserError for one that is not there.
    """

    def plain(text: str) -> str:
        return re.sub(r"\W", "", text).lower()

    if plain(wanted) in ("", "all"):
        return list(commands)
    found = [command for command in commands if plain(wanted) in (plain(command.row.where), plain(command.file))]
    if not found:
        places = list(dict.fromkeys(plain(command.row.where) for command in commands))
        raise UserError(f"--list={wanted}: give one of {', '.join([*places, *FILES])}")
    return found
