"""The paper's rows as commands, for people: on the console and as a page of documentation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from deit_jax import console
from deit_jax.paper.tables import SOURCE

TITLES = {
    "Table 1": "the models",
    "Table 2": "teachers, and DeiT-B distilled by each",
    "Table 3": "kinds of distillation",
    "Table 4": "where classifiers disagree; to be compared by --mode=analyze",
    "Table 5": "accuracy on ImageNet, ReaL and V2",
    "Table 6": "data sets (training / test)",
    "Table 7": "transfer",
    "Table 8": "ablation of DeiT-B, at 224 pixels and fine-tuned at 384",
    "Table 9": "hyper-parameters",
    "Table 10": "DeiT-B fine-tuned at other resolutions",
    "Figure 3": "DeiT-B by epochs",
    "Section 4": "two tokens",
    "Section 6": "the search for learning rate and weight decay",
}


class Line(NamedTuple):
    """A row as it is printed; texts may be empty."""

    where: str
    command: str
    inputs: tuple[str, ...]  # "from configs/deit.py:base", "teacher configs/teacher.py:regnety_160"
    what: str
    published: str
    exaflop: float
    hours: float
    status: str


def show(lines: Iterable[Line], assumption: str) -> None:
    """Print the rows by tables."""
    for where, group in _by_place(lines):
        status = min({line.status for line in group}, key=len)  # "not yet run" is true of all
        title = f"{where}: {TITLES[where]} ({status})"
        table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False, box=None)
        # Folding a command would spoil it for copying.
        table.add_column("--config=", no_wrap=True)
        table.add_column("what", overflow="fold")
        table.add_column("published", overflow="fold")
        table.add_column("EFLOP", justify="right", no_wrap=True)
        table.add_column("hours", justify="right", no_wrap=True)
        for line in group:
            command = Text(line.command)
            for extra in line.inputs:
                command.append(f"\n  {extra}", style="dim")
            table.add_row(command, Text(line.what), Text(line.published), f"{line.exaflop:.3g}", _hours(line.hours))
        console.show(table)
        console.show("")
    for sentence in _notes(assumption):
        console.show(sentence)


def markdown(lines: Iterable[Line], assumption: str, command: str) -> str:
    """The page docs/recipes.md; `command` is what writes it."""
    parts = [
        "# The paper as commands\n",
        f"Every DeiT and RegNetY row of {SOURCE}. The page is written by `{command}`; `python run.py --list` prints the same, "
        "`python run.py --list=table8` one table of it. A command is\n",
        "    python run.py --config=CONFIG --workdir=WORKDIR\n",
        "with `--config.model.weights=` the workdir of what stands behind *from*, and `--config.teacher.weights=` that of what "
        "stands behind *teacher*; a file of another framework or `pretrained` will do, too.\n",
    ]
    parts += [f"{sentence}\n" for sentence in _notes(assumption)]
    for where, group in _by_place(lines):
        parts.append(f"## {where}: {TITLES[where]}\n")
        rows = ["| `--config=` | what | published | EFLOP | hours | this code |", "|---|---|---|---|---|---|"]
        for line in group:
            command_cell = "<br>".join([f"`{line.command}`", *line.inputs])
            cells = (command_cell, line.what, line.published, f"{line.exaflop:.3g}", _hours(line.hours), line.status)
            rows.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _by_place(lines: Iterable[Line]) -> Iterator[tuple[str, Sequence[Line]]]:
    for where, group in groupby(lines, key=lambda line: line.where):
        yield where, list(group)


def _hours(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 10 else f"{hours:.1f}"


def _notes(assumption: str) -> list[str]:
    return [
        "Published figures are the paper's, top-1 in percent where nothing else is said; none has been obtained by this code.",
        "EFLOP: 10^18 operations of one training, its own stage alone: images x epochs x (three forward passes of the student "
        "and one of the teacher), whatever is frozen.",
        f"Hours: an estimate, these operations on {assumption}; not measured, and convnets usually reach less.",
    ]
