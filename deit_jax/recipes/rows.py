"""Rows of the paper's tables and figures, and the commands that reproduce them."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from deit_jax.errors import UserError

# In the order in which they are listed; the quick start is none of the paper's.
FILES = ("deit", "teacher", "distillation", "finetune", "transfer", "ablation", "search")


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table, or a point of a figure, as one command."""

    where: str  # "Table 8", "Figure 3", "Section 4"
    argument: str  # what stands after the file's colon
    what: str  # in words
    # top-1 in percent, by what it was measured on
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
    note: str = ""
    start: str = ""  # the file:argument whose workdir --config.model.weights takes
    teacher: str = ""  # the file:argument whose workdir --config.teacher.weights takes


def publish(config: ConfigDict, rows: Sequence[Row], argument: str) -> None:
    """Put the rows' figures into `config.published`, each once, where the words of `argument` are a row's in any order."""
    seen = set()
    for row in rows:
        if set(row.argument.split(",")) != set(argument.split(",")):
            continue
        for measure, value in row.published.items():
            if (measure, value) not in seen:
                seen.add((measure, value))
                name = f"published: {row.what}, {measure} ({row.where})".replace(
                    ".", "·"
                )  # a dot would part a field's name
                with config.unlocked():
                    config.published[name] = value


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


def find_configs() -> Path:
    """The folder of configuration files: ./configs, or that of the repository which this package or run.py is of.

    Raises UserError where there is none: an installed package has no configurations.
    """
    tried = [Path.cwd(), Path(sys.argv[0]).resolve().parent, Path(__file__).resolve().parents[2]]
    for folder in tried:
        if (folder / "configs" / "deit.py").is_file():
            return folder / "configs"
    raise UserError(
        "--list: there is no folder configs here; change to the repository's root, or call its run.py by its path"
    )


def load_commands(folder: Path | None = None) -> list[Command]:
    """All rows of the files in `folder` (default: `find_configs()`), by tables, figures and sections."""
    folder = folder or find_configs()
    commands = []
    for file in FILES:
        spec = importlib.util.spec_from_file_location(f"deit_jax_configs_{file}", folder / f"{file}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        commands += [Command(file, row, module.get_config) for row in module.ROWS]
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
