"""Console output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deit_jax.printable import printable

HEAD_NAMES = {
    "class": "class head",
    "distillation": "distillation head",
    "fused_logits": "both, mean of logits",
    "fused_softmax": "both, mean of softmax",
}

# A row of `summary`: name, top-1 %, top-5 %, loss. None is left blank.
Row = tuple[str, float | None, float | None, float | None]

_LEAST_WIDTH = 40  # columns
_PROGRESS_WIDTH = 120  # characters of a progress line, up to which it has the parts of the loss

_muted = False


def mute(muted: bool) -> None:
    """Switches all output off or on: of several processes only one prints."""
    global _muted
    _muted = muted


def _console(*, heed_columns: bool = False) -> Console:
    # rich would fold lines at 80 columns in a file or pipe. Evaluated on each call, because sys.stdout may be redirected.
    columns = os.environ.get("COLUMNS", "")
    known = _is_terminal() or (heed_columns and columns)
    if known and columns.isdecimal() and int(columns) < _LEAST_WIDTH:  # 0 in some shells without a terminal
        return Console(width=_LEAST_WIDTH, highlight=False, quiet=_muted)
    return Console(width=None if known else 140, highlight=False, quiet=_muted)


def _is_terminal() -> bool:
    return sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()


def _text(text: str, style: str = "") -> Text:
    """Makes a literal Text, which rich does not search for markup, with escapes for characters that cannot be shown."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return Text(printable(text).encode(encoding, "backslashreplace").decode(encoding), style)


def announce(title: str, facts: Mapping[str, str | Sequence[str]]) -> None:
    """Prints a block of named facts, each with one or more lines."""
    table = Table(title=_text(title, "bold"), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        lines = [fact] if isinstance(fact, str) else fact
        table.add_row(_text(name), Text("\n").join(_text(line) for line in lines))
    _console().print(table)


def show(what: Table | str) -> None:
    """Prints a finished table or a paragraph, at most COLUMNS wide even in a pipe."""
    _console(heed_columns=True).print(_text(what) if isinstance(what, str) else what)


def say(text: str) -> None:
    """Prints a line."""
    _console().print(_text(text), soft_wrap=True)  # folded by a terminal, one line in a file


def warn(text: str) -> None:
    """Prints a line that should be noticed."""
    _console().print(_text("warning: " + text, "yellow"), soft_wrap=True)


def progress(
    *,
    step: int,
    total_steps: int,
    epoch: float,
    loss: float,
    learning_rate: float,
    speed: Mapping[str, float] | None,
    data_wait: float | None,
    eta: float | None,
    hosts: Mapping[str, float] | None = None,
    parts: Mapping[str, float] | None = None,
) -> None:
    """Prints the progress line; `speed` is from `Speed.metrics`, `eta` in seconds. Both are omitted while unknown.

    hosts: figures of several processes, from `training.host_speeds.row_of`. parts: class_loss, distillation_loss and
    teacher_agreement of a run with a teacher; left out if the line would have more than 120 characters.
    """
    start = f"step {step:>{len(str(total_steps))}}/{total_steps}  epoch {epoch:6.2f}  loss {loss:.4f}"
    line = f"  lr {learning_rate:.3g}"
    if speed is not None and eta is not None:
        total, each = speed["images_per_second"], speed["images_per_second_per_device"]
        line += f"  {total:,.0f} images/s"
        if each < total:
            line += f", {each:,.0f} per device"
        if "mfu" in speed:
            line += f", MFU {100 * speed['mfu']:.1f} %"
        if hosts and hosts["hosts/data_wait_slowest"] >= 0.05:
            line += _waiting_hosts(hosts)
        elif data_wait is not None and data_wait >= 0.05:  # less is not worth fixing
            line += f" ({100 * data_wait:.0f} % of the time waiting for data)"
        line += f"  ETA {duration(eta)}"
    if parts:
        of_loss = f" (class {parts['class_loss']:.3f}, teacher {parts['distillation_loss']:.3f}"
        of_loss += f", agrees {100 * parts['teacher_agreement']:.0f} %)"
        if len(start + of_loss + line) <= _PROGRESS_WIDTH:
            start += of_loss
    say(start + line)


def _waiting_hosts(hosts: Mapping[str, float]) -> str:
    waits = (100 * hosts[f"hosts/data_wait_{which}"] for which in ("slowest", "median"))
    text = "waiting for data: {:.0f} % of the time in the slowest process, median {:.0f} %".format(*waits)
    if "hosts/slowest" in hosts:
        rates = (hosts[f"hosts/images_per_second_{which}"] for which in ("slowest", "median"))
        text += "; process {:.0f} reads {:,.0f} images/s, median {:,.0f}".format(hosts["hosts/slowest"], *rates)
    return f" ({text})"


def duration(seconds: float) -> str:
    """Formats seconds: 45s, 3m 20s, 2h 05m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60:02d}s"
    return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"


def scores_line(step: int, scores: Mapping[str, Mapping[str, Mapping[str, float]]], unreadable: int = 0) -> None:
    """Prints one line per evaluation: top-1 by weights and head, and the number of unreadable images that were left out."""
    parts = []
    for weights, by_head in scores.items():
        tops = ", ".join(f"{HEAD_NAMES[head]} {score['top1']:.2f}" for head, score in by_head.items())
        parts.append(f"{weights}: {tops}")
    left_out = f"  ({unreadable:,} unreadable image(s) left out)" if unreadable else ""
    say(f"evaluation at step {step}, top-1 %:  " + ";  ".join(parts) + left_out)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table of texts; all columns except the first are right-aligned."""
    shown = Table(title=_text(title, "bold"), title_justify="left")
    for i, column in enumerate(columns):
        shown.add_column(_text(column), justify="right" if i else "left")
    for row in rows:
        shown.add_row(*(_text(cell) for cell in row))
    _console().print(shown)


def summary(
    title: str,
    rows: Iterable[Row],
    extra: Mapping[str, Iterable[Row]] | None = None,
    *,
    notes: Iterable[str] = (),
) -> None:
    """Prints the closing table; the groups of `extra` rows have headings, and the notes follow, one line each."""
    table = Table(title=_text(title, "bold"), title_justify="left")
    table.add_column("model")
    for column in ("top-1 %", "top-5 %", "loss"):
        table.add_column(column, justify="right")
    for heading, group in {"": rows, **(extra or {})}.items():
        if heading:
            table.add_section()
            table.add_row(_text(heading, "bold"))
        for name, *values in group:
            cells = ["" if value is None else f"{value:.{n}f}" for value, n in zip(values, (2, 2, 4), strict=True)]
            table.add_row(_text(name), *cells)
    _console().print(table)
    for note in notes:
        say(note)  # not limited to the width of the table
