"""The command line: its flags, the configuration they specify, and the start of a mode. `main.py` runs it."""

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
from deit_jax.config_check import questionable, without_effect
from deit_jax.config_file import Override, apply, load_config, split
from deit_jax.errors import UserError, refuse_address
from deit_jax.help import page, requested
from deit_jax.modes import FLAGS, GENERAL, MODES, Flag, Given, Mode, UsageError
from deit_jax.paths import expand_paths, run_place, typed_path
from deit_jax.plugins import say_plugins
from deit_jax.recipes.files import find_config, own_configs
from deit_jax.storage.files import require_writable


def _define(flag: Flag) -> None:
    name, default, choices, meaning = flag.name, flag.default, list(flag.choices), flag.meaning
    if choices:
        define = flags.DEFINE_multi_enum if flag.type is list else flags.DEFINE_enum
        define(name, default, choices, meaning)
    elif flag.type is list:
        flags.DEFINE_list(name, default or [], meaning)
    else:
        by_type: dict[type, Any] = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, str: flags.DEFINE_string}
        by_type[flag.type](name, default, meaning)


for _flag in FLAGS.values():
    _define(_flag)


def _value(flag: str) -> Any:
    return flags.FLAGS[flag].value


@dataclasses.dataclass
class _Configuration:
    """The configuration of the command line: the file of --config with the values of --config.FIELD."""

    config: ConfigDict | None = None
    file: Path | None = None
    typed: frozenset[str] = frozenset()  # the fields given on the command line


_GIVEN = _Configuration()


def forget() -> None:
    """Resets what `parse` has read, so that the next call in this process starts afresh."""
    _GIVEN.config = _GIVEN.file = None
    _GIVEN.typed = frozenset()


def parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags and reads the configuration. Raises UserError with one line instead of absl's messages and tracebacks."""
    _show_help(argv)
    # The value of --list is optional.
    argv = ["--list=all" if argument in ("--list", "-list") else argument for argument in argv]
    flags.FLAGS.set_gnu_getopt(True)  # allow files and flags in any order
    try:
        argv, overrides = split(flags.FLAGS.read_flags_from_files(list(argv), force_gnu=True))
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise UsageError(_explained(error)) from error
    for flag in GENERAL:
        if _value(flag.name) == "":
            raise UsageError(f"--{flag.name} is empty: give a path (is a shell variable unset?)")
    file = _value("config")
    if overrides and file is None:
        raise UsageError(f"--config.{overrides[0].key} sets a field of --config=FILE, which is missing")
    if file is not None:
        _GIVEN.config, _GIVEN.file = _read_config(file, overrides)
        _GIVEN.typed = frozenset(key for key, _ in overrides)
    if "--" in argv and len(rest) > 1 and rest[1].startswith("-"):
        raise UsageError(f"{rest[1]} comes after --, where flags are not read")
    return rest


def _explained(error: flags.Error) -> str:
    line = " ".join(str(error).split())
    # Replace Python's messages for a value of the wrong type.
    line = re.sub(r": invalid literal for int\(\).*", ": give a whole number", line)
    line = re.sub(r": could not convert string to float.*", ": give a number", line)
    if isinstance(error, flags.UnrecognizedFlagError):
        fields = [key for key in sorted(OPTIONS) if key.rpartition(".")[2] == error.flagname.rpartition(".")[2]]
        line += "".join(f"; the configuration's is --config.{field}" for field in fields[:1])
    return line


def _read_config(argument: str, overrides: Sequence[Override]) -> tuple[ConfigDict, Path]:
    """Returns the configuration and its file, which is the package's if the current folder has none of that name."""
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
    """Prints the help page that a flag requests and exits. absl's own pages are ordered by module and exit with 1."""
    pages = [which for argument in argv[1:] if (which := requested(argument))]
    if pages:
        with contextlib.suppress(BrokenPipeError):  # a closed pager
            sys.stdout.write(page(pages[-1], __name__))
            sys.stdout.flush()
        sys.exit(0)


def run(argv: Sequence[str]) -> None:
    """Runs what the parsed flags request."""
    mode = MODES[_value("mode")]
    if len(argv) > 1 and (not mode.files or _value("list") is not None):
        raise UsageError(f"unexpected argument {argv[1]!r}; flags start with --")
    if _value("version"):
        from deit_jax.reporting.environment import version_page

        print(version_page())
        return
    if _value("list") is not None:
        from deit_jax.aot.compiling import stay_off_devices
        from deit_jax.paper.page import list_recipes

        stay_off_devices()
        list_recipes(_value("list"), _output())
        return
    given = _given(mode, argv[1:])
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # JAX logs every backend that it does not find
    # Imported late because it is slow: --help and mistakes in flags are answered at once.
    from deit_jax.parallel.platforms import default_to_cpu, require_devices

    default_to_cpu()
    if mode.devices == "prepared":
        beside_workdir = mode.shares_programs and given.workdir is not None
        _prepare_process(given.config or default_config(), beside_workdir=beside_workdir)
    elif mode.devices == "found":
        require_devices()
    say_plugins()  # only now, when one of several processes has been chosen to print
    if _GIVEN.config is not None and _GIVEN.file is not None:
        _report_packaged_file(_GIVEN.file)
        _warn_of_fields(_GIVEN.config, mode)
    try:
        mode.run(given)
    except OSError as error:
        if not isinstance(given.output, Path) or not _concerns(error, given.output):
            raise
        raise UsageError(f"--output={given.output} cannot be written ({error.strerror or error})") from error


def _given(mode: Mode, files: Sequence[str]) -> Given:
    """Returns the command line for a mode. Raises UsageError for a missing flag, or one that the mode does not have."""
    for flag in mode.needs:
        if not _value(flag):
            raise UsageError(FLAGS[flag].missing)
    for flag in FLAGS:
        users = [each.name for each in MODES.values() if each.accepts(flag)]
        if flags.FLAGS[flag].present and users and mode.name not in users:
            raise UsageError(f"--{flag} has no effect in --mode={mode.name}: it is for {', '.join(users)}")
    workdir, output = _value("workdir"), _value("output")
    is_address = mode.output_address and "://" in (output or "")
    if not is_address:
        refuse_address("--output", output, UsageError)  # before pathlib collapses the two slashes
    given = Given(
        config=_GIVEN.config,
        workdir=None if workdir is None else run_place("--workdir", workdir),
        output=output if is_address else _output(),
        files=[typed_path("FILE", name) for name in files],
        flags={flag.name: _value(flag.name) for flag in mode.flags},
    )
    if mode.check is not None:
        mode.check(given)
    if mode.output_file and given.output is not None and not _value("process_id"):  # the first process writes it
        require_writable(given.output, lambda message: UsageError(f"--output={message}"))
    return given


def _concerns(error: OSError, output: Path) -> bool:
    """Whether an error is about the output, something inside it, or a folder above it."""
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str)]
    return any(output.is_relative_to(name) or Path(name).is_relative_to(output) for name in names)


def _output() -> Path | None:
    output = _value("output")
    return None if output is None else Path(typed_path("--output", output))


def _warn_of_fields(config: ConfigDict, mode: Mode) -> None:
    from deit_jax import console

    useless = without_effect(config, _GIVEN.typed, recording=mode.name == "record")
    if useless:
        console.warn(f"without effect: {', '.join(f'config.{name} ({reason})' for name, reason in useless)}")
    for sentence in questionable(config):
        console.warn(sentence)


def _report_packaged_file(path: Path) -> None:
    """Reports that --config's file is not in the current folder: the user may have edited another one of that name."""
    from deit_jax import console

    if path.parent == own_configs():
        console.say(f"configs/{path.name} is not in this folder: using {path}, which comes with deit_jax")


def _prepare_process(config: ConfigDict, *, beside_workdir: bool = False) -> None:
    """Sets what must be set before anything large is allocated or compiled, or a device is used.

    beside_workdir: several processes later keep compiled programs next to the workdir, see `share_compiled_programs`.
    """
    import jax

    from deit_jax import console
    from deit_jax.parallel import distributed
    from deit_jax.parallel.compilation_cache import keep_compiled_programs, shares_programs
    from deit_jax.parallel.host_memory import keep_freed_memory
    from deit_jax.parallel.platforms import require_devices, unused_accelerator, will_compute_on_cpu

    if config.parallel.keep_host_memory and will_compute_on_cpu():
        keep_freed_memory()  # before JAX starts its threads; later it often has no effect
    cache = config.parallel.compilation_cache
    unsafe = keep_compiled_programs(cache)
    if jax.distributed.is_initialized():
        raise UsageError(
            "this process was one of several in an earlier run, which JAX cannot leave: start a new process, "
            f"python run.py {shlex.join(sys.argv[1:])}"
        )
    processes = (_value("coordinator"), _value("num_processes"), _value("process_id"))
    parallel = config.parallel
    distributed.start(*processes, heartbeat_seconds=parallel.heartbeat_seconds, join_seconds=parallel.join_seconds)
    require_devices()
    console.mute(not distributed.is_main_process())
    if unsafe and not (beside_workdir and shares_programs(cache)):  # else they are kept in another folder
        console.warn(unsafe)
    if "JAX_PLATFORMS" not in os.environ and (warning := unused_accelerator()) is not None:
        console.warn(warning)
