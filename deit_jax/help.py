"""The pages of --help, --help=config and --helpfull. What they say of flags and fields stands where those are defined."""

from __future__ import annotations

import ast
import inspect
import io
import re
import shutil
import sys
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict

from deit_jax.config import default_config


class Mode(NamedTuple):
    """What a mode does, and a command that does it."""

    what: str
    example: str


MODES = {
    "train": Mode(
        "start, or go on with what --workdir holds. This is what happens without --mode.",
        "python run.py --config=configs/quickstart.py --workdir=runs/quickstart",
    ),
    "eval": Mode(
        "score a checkpoint of --workdir, or without one config.model.weights.",
        "python run.py --mode=eval --config=configs/quickstart.py --workdir=runs/quickstart",
    ),
    "report": Mode(
        "write report.html of --workdir again: results, curves, images, attention.",
        "python run.py --mode=report --workdir=runs/quickstart",
    ),
    "predict": Mode(
        "name the classes of image files, by the network of --workdir or by config.model.weights.",
        "python run.py --mode=predict --workdir=runs/quickstart images/*.jpg",
    ),
    "export": Mode(
        "write a checkpoint of --workdir for another framework.",
        "python run.py --mode=export --workdir=runs/quickstart --output=exported --layout=timm",
    ),
    "preview": Mode(
        "picture the first training images after each stage of the recipe.",
        "python run.py --mode=preview --config=configs/quickstart.py --output=preview.png",
    ),
    "analyze": Mode(
        "compare the network of --workdir, its teacher and others, and look into its tokens and attention.",
        "python run.py --mode=analyze --workdir=runs/quickstart --compare=runs/other",
    ),
    "compile": Mode(
        "compile the train step for devices that need not be here, and tell its memory, collectives and least time.",
        "python run.py --mode=compile --config=configs/deit.py:base,distilled --topology=v5e-8",
    ),
    "throughput": Mode(
        "images/s of inference and training here, with random weights.",
        "python run.py --mode=throughput --config=configs/deit.py:small",
    ),
    "models": Mode("parameters and multiply-adds of every model.", "python run.py --mode=models"),
    "figures": Mode(
        "draw the paper's Figure 1 or 3, with finished runs of your own.",
        "python run.py --mode=figures --figure=1 --results=runs/a,runs/b --output=figure1.png",
    ),
}


_SUBJECTS = ("The paper", "Several processes")  # of flags that are no mode's


class Field(NamedTuple):
    """A field of the configuration: its dotted name, its default as Python, and the comment that stands at it."""

    name: str
    default: str
    meaning: str


def requested(argument: str) -> str | None:
    """Which page a command line's argument asks for: "short", "config" or "full"; None if it asks for none."""
    match argument.lstrip("-"):
        case _ if not argument.startswith("-"):
            return None
        case "help" | "helpshort" | "h" | "?" | "help=true":
            return "short"
        case "help=config":
            return "config"
        case "helpfull" | "helpfull=true":
            return "full"
    return None


def page(which: str, our_module: str) -> str:
    """The text of a page. `our_module` is the module's name under which our flags are registered."""
    width = min(shutil.get_terminal_size((110, 24)).columns, 130) if sys.stdout.isatty() else 110
    if which == "config":
        return "\n".join(_config_page(width)) + "\n"
    lines = list(_short_page(our_module, width))
    if which == "full":
        lines += ["", *_config_page(width), "", "FLAGS OF THE LIBRARIES", ""]
        for module in sorted(set(flags.FLAGS.flags_by_module_dict()) - {our_module}):
            lines.append(flags.FLAGS.module_help(module))
    else:
        lines += [
            "",
            "--help=config lists every field of the configuration, --helpfull all this and the libraries' flags.",
        ]
    return "\n".join(lines) + "\n"


def _short_page(our_module: str, width: int) -> Iterator[str]:
    yield "DeiT in JAX: python run.py --config=FILE[:ARGUMENT] --workdir=FOLDER [--mode=MODE] [--config.FIELD=VALUE ...]"
    ours = [flag for flag in flags.FLAGS.flags_by_module_dict()[our_module] if "." not in flag.name]
    parts = {flag.name: _by_subject(flag) for flag in ours}
    general = [flag for flag in ours if "" in parts[flag.name] and flag.name != "mode"]
    yield from ("", "FLAGS OF ALL MODES", "")
    for flag in general:
        yield from _entry(f"--{flag.name}", parts[flag.name][""], width)
    yield from _entry(
        "--config.FIELD",
        "a field of the configuration, e.g. --config.train.epochs=100; --help=config lists them",
        width,
    )
    yield from ("", "MODES (--mode=...)")
    for name, mode in MODES.items():
        yield from ("", *textwrap.wrap(f"{name}: {mode.what}", width, subsequent_indent="  "), f"    {mode.example}")
        for flag in ours:
            if name in parts[flag.name]:
                yield from _entry(f"--{flag.name}", parts[flag.name][name], width)
    for subject in _SUBJECTS:
        yield from ("", subject.upper(), "")
        for flag in ours:
            if subject in parts[flag.name]:
                yield from _entry(f"--{flag.name}", parts[flag.name][subject], width)


def _by_subject(flag: flags.Flag) -> dict[str, str]:
    """A flag's help by what it is for: "eval, export: a number. predict: a name" by mode, "" for what names none."""
    text = " ".join((flag.help or "").split())
    # absl's additions to the flag's own words
    text = re.sub(r"^<[^>]*>: |; repeat this option to specify a list of values$", "", text)
    choices = getattr(flag.parser, "enum_values", None)
    default = flag.default if flag.default not in (None, False, []) else None
    notes = [" | ".join(choices)] if choices else []
    if default is not None:
        notes.append("default " + (", ".join(default) if isinstance(default, list) else str(default)))
    names = "|".join([*MODES, *_SUBJECTS])
    pieces = re.split(rf"(?:^|(?<=\. ))((?:{names})(?:, (?:{names}))*): ", text)
    found = {"": pieces[0]} if pieces[0].strip() else {}
    for subjects, meaning in zip(pieces[1::2], pieces[2::2], strict=True):
        found |= {subject: meaning for subject in subjects.split(", ")}
    note = f" ({'; '.join(notes)})" if notes else ""
    return {subject: meaning.strip().rstrip(".") + note for subject, meaning in found.items()}


def _entry(name: str, meaning: str, width: int, column: int = 22) -> list[str]:
    """A name and its meaning beside it, or below it where the name is long."""
    first = f"    {name}".ljust(column)
    lines = textwrap.wrap(meaning, width, initial_indent=" " * column, subsequent_indent=" " * column)
    if not lines:
        return [first.rstrip()]
    if len(first) > column or not first.endswith(" "):
        return [first.rstrip(), *lines]
    return [first + lines[0][column:], *lines[1:]]


def _config_page(width: int) -> Iterator[str]:
    yield "FIELDS OF THE CONFIGURATION, with their defaults (a configuration file sets others)"
    section = None
    for field in config_fields():
        if field.name.partition(".")[0] != section and "." in field.name:
            section = field.name.partition(".")[0]
            yield ""
        yield f"    --config.{field.name}={field.default}"
        yield from textwrap.wrap(field.meaning, width, initial_indent=" " * 10, subsequent_indent=" " * 10)


def config_fields() -> list[Field]:
    """Every field of `default_config`, in its order, with the comment at the end of its line or in the lines above it."""
    source = textwrap.dedent(inspect.getsource(default_config))
    comments, alone = _comments(source)
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    config, prefixes, found = default_config(), dict[str, str](), list[Field]()
    for statement in function.body:
        if not isinstance(statement, ast.Assign):
            continue
        target = statement.targets[0]
        path = _dotted(target, prefixes)
        for alias in statement.targets[1:]:  # config.model = model = ConfigDict()
            assert isinstance(alias, ast.Name)
            prefixes[alias.id] = f"{path}."
        if isinstance(target, ast.Name):  # config = ConfigDict()
            prefixes[target.id] = ""
            continue
        if len(statement.targets) > 1:
            continue
        value = config
        for part in path.split("."):
            value = value[part]
        last = statement.end_lineno or statement.lineno
        first = statement.lineno
        while first - 1 in alone:
            first -= 1
        meaning = " ".join(comments[line] for line in range(first, last + 1) if line in comments)
        default = "{}" if isinstance(value, ConfigDict) else repr(value) if isinstance(value, tuple) else str(value)
        found.append(Field(path, default, meaning))
    return found


def _comments(source: str) -> tuple[dict[int, str], set[int]]:
    """The comments by line, from 1, and which of those lines hold nothing else."""
    comments, alone = dict[int, str](), set[int]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            comments[line] = token.string.lstrip("# ")
            if not token.line[: token.start[1]].strip():
                alone.add(line)
    return comments, alone


def _dotted(target: ast.expr, prefixes: Mapping[str, str]) -> str:
    if isinstance(target, ast.Name):
        return prefixes.get(target.id, "")
    assert isinstance(target, ast.Attribute)
    return f"{_dotted(target.value, prefixes)}{target.attr}"
