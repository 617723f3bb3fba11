"""The command line: its flags, the configuration that they give, and the start of a mode. `main.py` runs it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict

from deit_jax.config import OPTIONS, default_config
from deit_jax.config_check import without_effect
from deit_jax.config_file import Override, apply, load_config, split
from deit_jax.errors import UserError, refuse_address
from deit_jax.help import page, requested
from deit_jax.modes import FLAGS, GENERAL, MODES, Flag, Given, Mode, UsageError
from deit_jax.paths import expand_paths, folder, typed_path
from deit_jax.plugins import say_plugins
from deit_jax.recipes.files import find_config, own_configs


def _define(flag: Flag) -> None:
    name, default, choices, meaning = flag.name, flag.default, list(flag.choices), flag.meaning
    if flag.type is bool:
        flags.DEFINE_boolean(name, default, meaning)
    elif flag.type is int:
        flags.DEFINE_integer(name, default, meaning)
    elif flag.type is list and choices:
        flags.DEFINE_multi_enum(name, default, choices, meaning)
    elif flag.type is list:
        flags.DEFINE_list(name, default or [], meaning)
    elif choices:
        flags.DEFINE_enum(name, default, choices, meaning)
    else:
        flags.DEFINE_string(name, default, meaning)


for _flag in FLAGS.values():
    _define(_flag)


def _value(flag: str) -> Any:
    return flags.FLAGS[flag].value


@dataclasses.dataclass
class _Configuration:
    """The configuration of the command line: --config's file with the values of --config.FIELD in it."""

    config: ConfigDict | None = None
    file: Path | None = None
    typed: frozenset[str] = frozenset()  # the fields that are given on the command line


_GIVEN = _Configuration()


def forget() -> None:
    """Take back what `parse` has read: the next call in this process has a configuration of its own."""
    _GIVEN.config = _GIVEN.file = None
    _GIVEN.typed = frozenset()


def parse(argv: Sequence[str]) -> list[str]:
    """Parse flags and read the configuration; raises UserError with one line instead of absl's messages and tracebacks."""
    _show_help(argv)
    # --list's value may be left out.
    argv = ["--list=all" if argument in ("--list", "-list") else argument for argument in argv]
    flags.FLAGS.set_gnu_getopt(True)  # files and flags in any order
    try:
        argv, overrides = split(flags.FLAGS.read_flags_from_files(list(argv), force_gnu=True))
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise UsageError(_explained(error)) from error
    for flag in GENERAL:
        if _value(flag.name) == "":
            raise UsageError(f"--{flag.name} is empty: give a path (is a variable of the shell not set?)")
    file = _value("config")
    if overrides and file is None:
        raise UsageError(f"--config.{overrides[0].key} changes a field of --config=FILE, which is missing")
    if file is not None:
        _GIVEN.config, _GIVEN.file = _read_config(file, overrides)
        _GIVEN.typed = frozenset(key for key, _ in overrides)
    if "--" in argv and len(rest) > 1 and rest[1].startswith("-"):
        raise UsageError(f"{rest[1]} stands after --, where no flag is read")
    return rest


def _explained(error: flags.Error) -> str:
    line = " ".join(str(error).split())
    # Python's words for a value of the wrong type, after the flag's own.
    line = re.sub(r": invalid literal for int\(\).*", ": give a whole number", line)
    line = re.sub(r": could not convert string to float.*", ": give a number", line)
    if isinstance(error, flags.UnrecognizedFlagError):
        fields = [key for key in sorted(OPTIONS) if key.rpartition(".")[2] == error.flagname.rpartition(".")[2]]
        line += "".join(f"; the configuration's is --config.{field}" for field in fields[:1])
    return line


def _read_config(argument: str, overrides: Sequence[Override]) -> tuple[ConfigDict, Path]:
    """The configuration and its file: the package's where the current folder has none of that name."""
    name, colon, words = argument.partition(":")
    try:
        file = find_config(typed_path("--config", name))
    except UserError as error:
        raise UsageError(f"--config={str(error).removeprefix('--config=')}") from error
    config = load_config(f"{file}{colon}{words}")
    apply(config, overrides)
    expand_paths(config)
    return config, file


def _show_help(argv: Sequence[str]) -> None:
    """Print the page that a flag asks for and end; absl's own pages are in the order of modules, and exit with 1."""
    pages = [which for argument in argv[1:] if (which := requested(argument))]
    if pages:
        with contextlib.suppress(BrokenPipeError):  # of a pager that was closed
            sys.stdout.write(page(pages[-1], __name__))
            sys.stdout.flush()
        sys.exit(0)


def run(argv: Sequence[str]) -> None:
    """What happens after the flags are parsed."""
    mode = MODES[_value("mode")]
    if len(argv) > 1 and (not mode.files or _value("list") is not None):
        raise UsageError(f"unexpected argument {argv[1]!r}; flags begin with --")
    if _value("version"):
        from deit_jax.reporting.environment import version_page

        print(version_page())
        return
    if _value("list") is not None:
        from deit_jax.modes.listing import list_recipes

        list_recipes(_value("list"), _output())
        return
    given = _given(mode, argv[1:])
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # jax tells of every backend that it does not find
    # What takes long to import is imported late, so that --help and mistakes in flags answer at once.
    from deit_jax.parallel.platforms import default_to_cpu, require_devices

    default_to_cpu()
    if mode.devices == "prepared":
        beside_workdir = mode.shares_programs and given.workdir is not None
        config = default_config() if given.config is None else given.config
        _prepare_process(config, beside_workdir=beside_workdir)
    elif mode.devices == "found":
        require_devices()
    say_plugins()  # by one of several processes
    if _GIVEN.config is not None and _GIVEN.file is not None:
        _tell_packaged_file(_GIVEN.file)
        _warn_of_what_has_no_effect(_GIVEN.config)
    try:
        mode.run(given)
    except OSError as error:
        if given.output is None or not _concerns(error, given.output):
            raise
        raise UsageError(f"--output={given.output} cannot be written ({error.strerror or error})") from error


def _given(mode: Mode, files: Sequence[str]) -> Given:
    """What the command line gives a mode. Raises UsageError for what it lacks, and for a flag that the mode does not have."""
    for flag in mode.needs:
        if not _value(flag):
            raise UsageError(FLAGS[flag].missing)
    for flag in FLAGS:
        users = [each.name for each in MODES.values() if each.accepts(flag)]
        if flags.FLAGS[flag].present and users and mode.name not in users:
            raise UsageError(f"--{flag} has no effect in --mode={mode.name}: it is for {', '.join(users)}")
    workdir, output = _value("workdir"), _value("output")
    if "://" in (workdir or ""):
        raise UsageError(
            f"--workdir={workdir} is an address: give a folder, on a disk that all processes of the run share"
        )
    refuse_address("--output", output, UsageError)  # before pathlib makes one slash of two
    given = Given(
        config=_GIVEN.config,
        workdir=None if workdir is None else folder("--workdir", workdir),
        output=_output(),
        files=[typed_path("FILE", name) for name in files],
        flags={flag.name: _value(flag.name) for flag in mode.flags},
    )
    if mode.check is not None:
        mode.check(given)
    return given


def _concerns(error: OSError, output: Path) -> bool:
    """Whether an error is of that file or folder, of what it is to hold, or of a folder above it."""
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str)]
    return any(output.is_relative_to(name) or Path(name).is_relative_to(output) for name in names)


def _output() -> Path | None:
    output = _value("output")
    return None if output is None else Path(typed_path("--output", output))


def _warn_of_what_has_no_effect(config: ConfigDict) -> None:
    """Name the fields that other fields make useless, in one line: whoever set them believes that they do something."""
    from deit_jax import console

    useless = [f"config.{name} ({reason})" for name, reason in without_effect(config, _GIVEN.typed)]
    if useless:
        console.warn(f"without effect: {', '.join(useless)}")


def _tell_packaged_file(path: Path) -> None:
    """Say so where --config's file is not in the current folder: the user may have changed another of that name."""
    from deit_jax import console

    if path.parent == own_configs():
        console.say(f"configs/{path.name} is not in this folder: {path}, which comes with deit_jax, is taken")


def _prepare_process(config: ConfigDict, *, beside_workdir: bool = False) -> None:
    """What has to be set before anything large is allocated, compiled or asked of a device.

    beside_workdir: several processes keep compiled programs there later, see `share_compiled_programs`.
    """
    import jax

    from deit_jax import console
    from deit_jax.parallel import distributed
    from deit_jax.parallel.compilation_cache import keep_compiled_programs, shares_programs
    from deit_jax.parallel.host_memory import keep_freed_memory
    from deit_jax.parallel.platforms import require_devices, unused_accelerator, will_compute_on_cpu

    if config.parallel.keep_host_memory and will_compute_on_cpu():
        keep_freed_memory()  # before JAX starts its threads: later it often has no effect
    cache = config.parallel.compilation_cache
    unsafe = keep_compiled_programs(cache)
    if jax.distributed.is_initialized():
        raise UsageError(
            "this process was one of several in an earlier run, which JAX cannot leave: start a new process for each, "
            f"python run.py {shlex.join(sys.argv[1:])}"
        )
    told = (_value("coordinator"), _value("num_processes"), _value("process_id"))
    parallel = config.parallel
    distributed.start(*told, heartbeat_seconds=parallel.heartbeat_seconds, join_seconds=parallel.join_seconds)
    require_devices()
    console.mute(not distributed.is_main_process())
    if unsafe and not (beside_workdir and shares_programs(cache)):  # else they are kept in another folder, see there
        console.warn(unsafe)
    if "JAX_PLATFORMS" not in os.environ and (warning := unused_accelerator()) is not None:
        console.warn(warning)
