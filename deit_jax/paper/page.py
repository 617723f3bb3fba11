"""run.py --list: the paper's rows as commands, on the console and as docs/recipes.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich.table import Table
from rich.text import Text

from deit_jax import console
from deit_jax.paper.commands import ASSUMPTION, Command, load_commands, select, training_cost
from deit_jax.paper.tables import SOURCE

PAGE_COMMAND = "python run.py --list --output=docs/recipes.md"
TITLES = {
    "Table 1": "the models",
    "Table 2": "teachers, and DeiT-B distilled by each",
    "Table 3": "kinds of distillation",
    "Table 4": "disagreement of classifiers; compare them with --mode=analyze",
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
_NOTES = (
    "Published figures are the paper's, top-1 in percent unless stated otherwise. This code has not yet run any of these rows.",
    "EFLOP: 10^18 operations of this training alone, without the rows it builds on: images x epochs x (three forward passes of "
    "the student and one of the teacher), even if layers are frozen.",
    f"Hours: an estimate, these operations on {ASSUMPTION}; not measured, and convnets usually reach less.",
)


def list_recipes(wanted: str = "all", output: Path | None = None) -> None:
    """Prints the rows of a table, figure, section or file, or writes them to `output` as Markdown.

    Raises UserError, with one line, if there are no configurations or no such rows.
    """
    commands = select(load_commands(), wanted)
    if output is None:
        _show(commands)
    else:
        output.write_text(_markdown(commands), encoding="utf-8")
        console.say(f"{len(commands)} rows are in {output}")


def _show(commands: Sequence[Command]) -> None:
    for title, group in _by_place(commands):
        table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False, box=None)
        table.add_column("--config=", no_wrap=True)  # a folded command could not be copied
        table.add_column("what", overflow="fold")
        table.add_column("published", overflow="fold")
        table.add_column("EFLOP", justify="right", no_wrap=True)
        table.add_column("hours", justify="right", no_wrap=True)
        for command in group:
            cell = Text(command.name)
            for row in command.inputs:
                cell.append(f"\n  {row}", style="dim")
            table.add_row(cell, *(Text(text) for text in _cells(command)))
        console.show(table)
        console.show("")
    for note in _NOTES:
        console.show(note)


def _markdown(commands: Sequence[Command]) -> str:
    parts = [
        "# The paper as commands\n",
        f"The DeiT and RegNetY rows of {SOURCE}, each as a command:\n",
        "    python run.py --config=CONFIG --workdir=WORKDIR\n",
        "A row *from* another one (both in `configs/`) also takes `--config.model.weights=` the other's workdir, a row with a "
        "*teacher* `--config.teacher.weights=` the teacher's; a file of another framework or `pretrained` works too. "
        f"`python run.py --list=table8` prints one table. `{PAGE_COMMAND}` writes this page.\n",
    ]
    parts += [f"{note}\n" for note in _NOTES]
    for title, group in _by_place(commands):
        rows = ["| `--config=` | what | published | EFLOP | hours |", "|---|---|---|---|---|"]
        for command in group:
            cells = ("<br>".join([f"`{command.name}`", *command.inputs]), *_cells(command))
            rows.append("| " + " | ".join(cells) + " |")
        parts += [f"## {title}\n", "\n".join(rows) + "\n"]
    return "\n".join(parts)


def _by_place(commands: Sequence[Command]) -> Iterator[tuple[str, Sequence[Command]]]:
    for where, group in groupby(commands, key=lambda command: command.row.where):
        yield f"{where}: {TITLES[where]}", list(group)


def _cells(command: Command) -> tuple[str, str, str, str]:
    """What the row is, the published figures, EFLOP and hours."""
    row, cost = command.row, training_cost(command.config())
    figures = ", ".join(f"{measure} {value:.1f}" for measure, value in row.published.items())
    published = "; ".join(filter(None, [figures, row.note]))
    return row.what, published, f"{cost.exaflop:.3g}", f"{cost.hours:.{0 if cost.hours >= 10 else 1}f}"
