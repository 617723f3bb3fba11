"""The commands in README, docs, configurations and notebooks: their flags, fields, files and targets exist."""

import ast
import contextlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from absl import flags

from deit_jax import command_line
from deit_jax.config_check import validate
from deit_jax.errors import UserError
from deit_jax.modes import MODES

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "configs").glob("*.py"))]
PAGES += [*sorted((ROOT / "benchmarks").glob("*.py")), *sorted((ROOT / "notebooks").glob("*.ipynb"))]
RUN = ("python run.py", "python -m deit_jax")
# Names in capitals stand for the reader's own; these have types.
PLACEHOLDERS = {
    "--config=C": "--config=configs/deit.py",
    "--config=CONFIG": "--config=configs/deit.py",
    "configs/x.py": "configs/deit.py",
    "ARGUMENT": "small",
    "TOPOLOGY": "v5e-8",
    **{name: "1" for name in ("N", "I", "SEED", "PORT")},
}
# These need a user's own module, or leave something to the reader.
OPEN = re.compile(r"\.\.\.|--config\.FIELD|\[|my_")


def texts(path):
    """The Markdown or prose of a file: a module's docstring, a notebook's cells, or the whole page."""
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(path.read_text())) or ""
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text())["cells"]
        lines = "\n".join("".join(cell["source"]) for cell in cells).splitlines()
        return "\n".join("    " + line.strip().removeprefix("!").removeprefix("%run ") for line in lines)
    return path.read_text()


def commands(path):
    """The commands in code blocks and inline code, on one line each."""
    text = re.sub(r" *\\\n\s*", " ", texts(path))
    for name, value in re.findall(r'^ +([A-Z]+)="(.*)"$', text, re.M):  # variables of the shell
        text = text.replace(f"${name}", value)
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    for block in re.findall(r"```\w*\n(.*?)```", text, re.S):
        lines += [line.strip() for line in block.splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))]
    return [re.split(r"\s+#\s|\s+>\s|\s+&&\s|\s+\|\s|\s+&$|\s+\(", line)[0].strip() for line in dict.fromkeys(lines)]


def found(*prefixes):
    pattern = re.compile(rf"^(?:[A-Z_]+=\S+ )*(?:{'|'.join(map(re.escape, prefixes))})(?: |$|(?<=/))")
    cases = [(path, line) for path in PAGES for line in commands(path) if pattern.match(line)]
    cases = [(path, line) for path, line in cases if line not in (*prefixes, "make")]  # the name of the command alone
    return [pytest.param(line, id=f"{path.relative_to(ROOT)}: {line}") for path, line in cases]


@pytest.fixture
def parser(monkeypatch, modules):  # of `modules` only that what plugins register goes again
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "examples/extending"))
    yield command_line
    for plugin in (ROOT / "examples/extending").glob("*.py"):
        sys.modules.pop(plugin.stem, None)
    command_line.forget()
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()


@pytest.mark.parametrize("command", found(*RUN))
def test_run_accepts_the_command(command, parser, capsys):
    if OPEN.search(command):
        pytest.skip("it leaves something to the reader")
    for placeholder, value in PLACEHOLDERS.items():
        command = re.sub(rf"(?<![\w-]){re.escape(placeholder)}(?!\w)", value, command)
    arguments = shlex.split(command)
    arguments = arguments[next(i for i, part in enumerate(arguments) if part in ("run.py", "deit_jax")) + 1 :]
    with contextlib.suppress(SystemExit):  # after a help page
        rest = parser.parse(["run.py", *arguments])
        if flags.FLAGS["version"].value or flags.FLAGS["list"].value is not None:
            return
        mode = MODES[flags.FLAGS["mode"].value]
        parser._given(mode, rest[1:])
        assert mode.files or len(rest) == 1, f"unexpected {rest[1:]}"
        config = parser._GIVEN.config
        if config is not None and mode.name == "train":
            with contextlib.suppress(_Unset):
                checked(config)


class _Unset(Exception):
    """A field of which the text beside the command says that it must be set."""


def checked(config):
    try:
        validate(config)
    except UserError as error:
        if re.search(r"needs a teacher: set config.teacher.weights", str(error)):
            raise _Unset from None
        raise


@pytest.mark.parametrize("command", found("python benchmarks/"))
def test_a_benchmark_has_the_flags_of_the_command(command):
    words = shlex.split(command)
    script = next(word for word in words if word.startswith("benchmarks/"))
    source = (ROOT / script).read_text()
    for word in words[words.index(script) + 1 :]:
        if word.startswith("--"):
            flag = word.split("=")[0]
            assert re.search(rf'["\']({flag}|{flag[2:]})["\']', source), f"{script} has no {flag}"


@pytest.mark.parametrize("command", found("make"))
def test_make_has_the_target(command):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for word in command.split()[1:]:
        assert "=" in word or word in targets, f"the Makefile has no target {word}"


@pytest.mark.parametrize("command", found("launch/tpu_vm.sh", "launch/local_processes.sh", "sbatch", "kubectl apply"))
def test_a_launch_script_exists(command):
    for script in re.findall(r"launch/[\w./]+", command):
        assert (ROOT / script).is_file()
