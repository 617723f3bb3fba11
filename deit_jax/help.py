"""The pages of --help, --help=config and --helpfull, and docs/options.md, from the declarations of modes, flags and options."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from absl import flags

from deit_jax.config import OPTIONS, SECTIONS
from deit_jax.modes import GENERAL, MODES, PAGES, PROCESSES, Flag, Mode

MARKDOWN_COMMAND = "python run.py --help=markdown > docs/options.md"


class Field(NamedTuple):
    """A field of the configuration: its dotted name, default as Python, allowed values, and meaning."""

    name: str
    default: str
    values: str
    meaning: str


def requested(argument: str) -> str | None:
    """Returns the page that an argument requests: "short", "config", "full" or "markdown"; None if it requests none."""
    match argument.lstrip("-"):
        case _ if not argument.startswith("-"):
            return None
        case "help" | "helpshort" | "h" | "?" | "help=true":
            return "short"
        case "help=config" | "help=markdown":
            return argument.partition("=")[2]
        case "helpfull" | "helpfull=true":
            return "full"
    return None


def page(which: str, our_module: str) -> str:
    """Returns the text of a page. `our_module` is the name of the module that registered our flags."""
    width = min(shutil.get_terminal_size((110, 24)).columns, 130) if sys.stdout.isatty() else 110
    if which == "markdown":
        return "\n".join(_markdown()) + "\n"
    if which == "config":
        return "\n".join(_config_page(width)) + "\n"
    lines = list(_short_page(width))
    if which == "full":
        lines += ["", *_config_page(width), "", "FLAGS OF THE LIBRARIES", ""]
        for module in sorted(set(flags.FLAGS.flags_by_module_dict()) - {our_module}):
            lines.append(flags.FLAGS.module_help(module))
    else:
        lines += [
            "",
            "--help=config lists all fields of the configuration; --helpfull adds the flags of the libraries.",
        ]
    return "\n".join(lines) + "\n"


def _short_page(width: int) -> Iterator[str]:
    yield "DeiT in JAX: python run.py --config=FILE[:ARGUMENT] --workdir=FOLDER [--mode=MODE] [--config.FIELD=VALUE ...]"
    field = Flag(
        "config.FIELD", "a field of the configuration, e.g. --config.train.epochs=100; --help=config lists them"
    )
    yield from _flags("FLAGS OF MOST MODES", [flag for flag in GENERAL if flag.name != "output"] + [field], width)
    yield from ("", "MODES (--mode=...)")
    for mode in MODES.values():
        yield ""
        yield from textwrap.wrap(f"{mode.name}: {mode.summary}", width, subsequent_indent="  ")
        yield f"    {mode.example}"
        for flag in own_flags(mode):
            yield from _entry(f"--{flag.name}", _described(flag), width)
    yield from _flags("PAGES, INSTEAD OF A MODE", PAGES, width)
    yield from _flags("SEVERAL PROCESSES", PROCESSES, width)


def own_flags(mode: Mode) -> list[Flag]:
    """The flags of a mode with their meaning in it, without --config, --workdir and those of processes."""
    return [*([Flag("output", mode.output)] if mode.output else []), *mode.flags]


def _flags(title: str, shown: Sequence[Flag], width: int) -> Iterator[str]:
    yield from ("", title, "")
    for flag in shown:
        yield from _entry(f"--{flag.name}", _described(flag), width)


def _described(flag: Flag) -> str:
    """A flag's meaning, choices and default."""
    notes = [" | ".join(flag.choices)] if flag.choices else []
    if flag.default not in (None, False):
        notes.append(f"default {', '.join(flag.default) if isinstance(flag.default, list | tuple) else flag.default}")
    return flag.meaning + (f" ({'; '.join(notes)})" if notes else "")


def _entry(name: str, meaning: str, width: int, column: int = 22) -> list[str]:
    """The lines of a name and its meaning, which starts on the same line if the name is short."""
    first = f"    {name}".ljust(column)
    lines = textwrap.wrap(meaning, width, initial_indent=" " * column, subsequent_indent=" " * column)
    if not lines:
        return [first.rstrip()]
    if len(first) > column or not first.endswith(" "):
        return [first.rstrip(), *lines]
    return [first + lines[0][column:], *lines[1:]]


def _config_page(width: int) -> Iterator[str]:
    yield "FIELDS OF THE CONFIGURATION, with their defaults (configuration files set others)"
    section = None
    for field in config_fields():
        if (first := field.name.partition(".")[0]) != section and "." in field.name:
            section = first
            yield from ("", f"{section}: {SECTIONS[section]}")
        yield f"    --config.{field.name}={field.default}" + (f"   ({field.values})" if field.values else "")
        yield from textwrap.wrap(field.meaning, width, initial_indent=" " * 10, subsequent_indent=" " * 10)


def config_fields() -> list[Field]:
    """Returns every field of `default_config`, in the order of declaration."""
    return [
        Field(
            name,
            repr(each.default) if isinstance(each.default, tuple | dict) else str(each.default),
            " | ".join(each.known_choices()) or each.bounds,
            each.meaning,
        )
        for name, each in OPTIONS.items()
    ]


def _markdown() -> Iterator[str]:
    yield "# Modes, flags and fields\n"
    yield (
        f"Written by `{MARKDOWN_COMMAND}` from the declarations in `deit_jax/modes/__init__.py` and `deit_jax/config.py`. "
        "[configuration.md](configuration.md) explains how to write values.\n"
    )
    yield "## Modes\n"
    yield "`--mode=MODE`; the default is `train`. A flag that a mode does not have is refused.\n"
    for mode in MODES.values():
        needs = [f"`--{name}`" for name in mode.needs]
        takes = [f"`--{name}`" for name in mode.takes]
        yield f"### {mode.name}\n\n{mode.summary[0].upper()}{mode.summary[1:]}\n\n    {mode.example}\n"
        yield f"Needs {', '.join(needs) or 'no flag'}{'; takes ' + ', '.join(takes) if takes else ''}.\n"
        yield from _table(("flag", "meaning"), [(f"`--{flag.name}`", _described(flag)) for flag in own_flags(mode)])
    for title, shown in (("Pages, instead of a mode", PAGES), ("Several processes", PROCESSES)):
        yield f"## {title}\n"
        yield from _table(("flag", "meaning"), [(f"`--{flag.name}`", _described(flag)) for flag in shown])
    yield "## Fields of the configuration\n"
    yield "`--config.FIELD=VALUE`. The defaults are those of `default_config()`; configuration files set others.\n"
    fields = config_fields()
    for section, about in SECTIONS.items():
        yield f"### {section or 'the run'}\n\n{about}\n"
        rows = [
            (f"`{field.name}`", f"`{field.default}`" if field.default else "`''`", field.values, field.meaning)
            for field in fields
            if field.name.rpartition(".")[0] == section
        ]
        yield from _table(("field", "default", "values", "meaning"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields the lines of a table, if it has rows."""
    if rows:
        for row in (head, ["---"] * len(head), *rows):
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|').replace('<', '&lt;') for cell in row)} |"
        yield ""
