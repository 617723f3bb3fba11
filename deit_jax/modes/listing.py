"""run.py --list: the paper's rows as commands, with the published figure and the expected cost."""

from __future__ import annotations

from pathlib import Path

from deit_jax import console
from deit_jax.aot.compiling import stay_off_devices
from deit_jax.paper import page
from deit_jax.paper.commands import Command, load_commands, select
from deit_jax.paper.cost import ASSUMPTION, training_cost
from deit_jax.paper.page import Line

PAGE_COMMAND = "python run.py --list --output=docs/recipes.md"


def list_recipes(wanted: str = "all", output: Path | None = None) -> None:
    """Print the rows of a table, figure, section or file, or write them to `output` as Markdown.

    Raises UserError, with one line, where there are no configurations or no such rows.
    """
    stay_off_devices()
    lines = [to_line(command) for command in select(load_commands(), wanted)]
    if output is None:
        page.show(lines, ASSUMPTION)
    else:
        output.write_text(page.markdown(lines, ASSUMPTION, PAGE_COMMAND), encoding="utf-8")
        console.say(f"{len(lines)} rows are in {output}")


def to_line(command: Command) -> Line:
    """A row with its cost, as it is printed."""
    row, config = command.row, command.config()
    cost = training_cost(config)
    figures = [f"{measure} {value:.1f}" for measure, value in row.published.items()]
    inputs = [("from", row.start), ("teacher", row.teacher)]
    return Line(
        where=row.where,
        command=command.name,
        inputs=tuple(f"{word} configs/{name}" for word, name in inputs if name),
        what=row.what,
        published="; ".join(filter(None, [", ".join(figures), row.note])),
        exaflop=cost.exaflop,
        hours=cost.hours,
        status="not yet run on ImageNet" if config.data.name == "imagenet2012" else "not yet run",
    )
