"""The command line: flags, the configuration that they give, and the choice of a mode. `main.py` runs it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from absl import flags, logging
from ml_collections import ConfigDict

from deit_jax.config import default_config
from deit_jax.config_file import field_names, load_config
from deit_jax.config_overrides import Override, apply, split
from deit_jax.config_unused import without_effect
from deit_jax.errors import UserError, refuse_address
from deit_jax.help import MODES, page, requested
from deit_jax.paths import expand_paths, folder, typed_path
from deit_jax.plugins import say_plugins
from deit_jax.recipes.location import find_config, own_configs

_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "the configuration: a file, e.g. configs/quickstart.py, and for some an argument, e.g. configs/deit.py:small,distilled",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "the folder of the run: checkpoints, metrics, results; made if it is not there"
)
_MODE = flags.DEFINE_enum("mode", "train", list(MODES), "What to do; see the modes.")
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "preview: the picture to write. export: a folder (weights, and the files from which timm or transformers build the "
    "model; layout=jax: program and preprocessing), or a .safetensors or .pth file for the tensors alone, or of layout=onnx an "
    ".onnx file. predict: a .json or .csv file. compile: a JSON file of the figures, else printed last. "
    "eval: a JSON file, else WORKDIR/evaluation.json. analyze: a folder, else WORKDIR/analysis. throughput, models: a "
    "JSON file. figures: the picture. report: the page, else WORKDIR/report.html.",
)
_LAYOUT = flags.DEFINE_enum(
    "layout",
    "timm",
    ["timm", "hf", "mmpretrain", "flax", "jax", "onnx"],
    "export: whose names the tensors get. hf is Hugging Face transformers, flax this package. jax, onnx: a program with its "
    "weights instead, which runs without this package.",
)
_OPSET = flags.DEFINE_integer(
    "opset",
    None,
    "export: of layout=onnx, the version of ONNX's operators, 18 to 23; else 18, which the oldest runtimes read.",
)
_WEIGHTS = flags.DEFINE_enum(
    "weights",
    "raw",
    ["raw", "ema"],
    "export, analyze, predict, figures, report: the trained weights or their moving average.",
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "newest",
    "eval, export, predict: newest, best (the one with the highest top-1 that is kept) or a step's number.",
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "compile: the devices, e.g. v5e-8, v4-64, v6e-8 or h100-8 (a wrong name lists all)."
)
_SEARCH_BATCH = flags.DEFINE_boolean(
    "search_batch", False, "compile: look for the largest batch that fits; several compilations."
)
_COMPARE = flags.DEFINE_list(
    "compare",
    [],
    "analyze: further networks: workdirs, weights files of the same model, MODEL:FILE, MODEL:pretrained; by commas.",
)
_IMAGES = flags.DEFINE_list("images", [], "analyze: image files whose attention is pictured; else the first evaluated.")
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "analyze: pixels at which position embeddings are compared; else 384/224 of the network's own."
)
_MEASURE = flags.DEFINE_multi_enum(
    "measure", ["inference", "training"], ["inference", "training"], "throughput: what; give it twice for both."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "throughput: images over all devices; else the largest batch that fits (CPU: the fastest)."
)
_RUNS = flags.DEFINE_integer("runs", 30, "throughput: timed runs.")
_FIGURE = flags.DEFINE_enum("figure", None, ["1", "3"], "figures: which of the paper's.")
_RESULTS = flags.DEFINE_list("results", [], "figures: workdirs of finished runs; by commas.")
_LIST = flags.DEFINE_string(
    "list",
    None,
    "The paper: print its rows as commands, with the published figure and the expected cost, and end. --list=table8, "
    "--list=figure3 or --list=ablation: those alone. With --output=F.md they are written as Markdown.",
)
_VERSION = flags.DEFINE_boolean("version", False, "Print the versions, the backend and the devices, and end.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "Several processes: host:port of process 0. TPU pods, Slurm and Open MPI 4 need no such flag (docs/pods.md).",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Several processes: how many.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Several processes: the number of this one, from 0.")


class UsageError(UserError):
    """A command line that cannot be understood; the message is one line."""


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
    for flag in _PATHS:
        if flags.FLAGS[flag].present and flags.FLAGS[flag].value == "":
            raise UsageError(f"--{flag} is empty: give a path (is a variable of the shell not set?)")
    if overrides and _CONFIG.value is None:
        raise UsageError(f"--config.{overrides[0].key} changes a field of --config=FILE, which is missing")
    if _CONFIG.value is not None:
        _GIVEN.config, _GIVEN.file = _read_config(_CONFIG.value, overrides)
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
        fields = [key for key in field_names() if key.rpartition(".")[2] == error.flagname.rpartition(".")[2]]
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


# What a mode cannot do without, and what is said where it lacks.
_NEEDS = {
    "train": ("config", "workdir"),
    "eval": ("config",),  # and the workdir or config.model.weights
    "export": ("workdir", "output"),  # the workdir has its own configuration
    "preview": ("config", "output"),
    "compile": ("config", "topology"),
    "analyze": ("workdir",),  # whose own configuration holds where --config is not given
    "predict": (),  # the workdir, or a config whose model.weights are given
    "throughput": ("config",),
    "models": (),
    "figures": ("figure", "output"),
    "report": ("workdir",),  # as analyze
}
_PATHS = ("config", "workdir", "output")
_MISSING = {
    "config": "--config is missing, e.g. --config=configs/quickstart.py (--help lists all flags)",
    "workdir": "--workdir is missing: the folder for checkpoints, metrics and results",
    "output": "--output is missing: the file or folder to write to",
    "topology": "--topology is missing: the devices to compile for, e.g. --topology=v5e-8",
    "figure": "--figure is missing: 1 (throughput against top-1) or 3 (epochs against top-1)",
}


def run(argv: Sequence[str]) -> None:
    """What happens after the flags are parsed."""
    if len(argv) > 1 and (_MODE.value != "predict" or _LIST.value is not None):
        raise UsageError(f"unexpected argument {argv[1]!r}; flags begin with --")
    if _VERSION.value:
        from deit_jax.reporting.environment import version_page

        print(version_page())
        return
    if _LIST.value is not None:
        from deit_jax.modes.listing import list_recipes

        list_recipes(_LIST.value, _output())
        return
    mode, config = _MODE.value, _GIVEN.config
    for flag in _NEEDS[mode]:
        if not flags.FLAGS[flag].value:
            raise UsageError(_MISSING[flag])
    if "://" in (_WORKDIR.value or ""):
        raise UsageError(
            f"--workdir={_WORKDIR.value} is an address: give a folder, on a disk that all processes of the run share"
        )
    refuse_address("--output", _OUTPUT.value, UsageError)  # before pathlib makes one slash of two
    workdir = None if _WORKDIR.value is None else folder("--workdir", _WORKDIR.value)
    output, files = _output(), [typed_path("FILE", name) for name in argv[1:]]
    if mode == "predict":
        _check_predict(files)
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # jax tells of every backend that it does not find
    # What takes long to import is imported late, so that --help and mistakes in flags answer at once.
    from deit_jax.parallel.platforms import look_for_nothing_that_is_not_here, require_devices

    look_for_nothing_that_is_not_here()
    if config is not None and mode != "compile":  # which touches no device
        _prepare_process(config, beside_workdir=mode in ("train", "eval") and workdir is not None)
    elif mode in ("analyze", "predict", "report"):
        _prepare_process(default_config())
    elif mode != "compile":
        require_devices()
    say_plugins()  # by one of several processes
    if config is not None and _GIVEN.file is not None:
        _tell_packaged_file(_GIVEN.file)
        _warn_of_what_has_no_effect(config)
    try:
        _run_mode(mode, files, workdir, output)
    except OSError as error:
        if output is None or not _concerns(error, output):
            raise
        raise UsageError(f"--output={output} cannot be written ({error.strerror or error})") from error


def _concerns(error: OSError, output: Path) -> bool:
    """Whether an error is of that file or folder, of what it is to hold, or of a folder above it."""
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str)]
    return any(output.is_relative_to(name) or Path(name).is_relative_to(output) for name in names)


def _output() -> Path | None:
    return None if _OUTPUT.value is None else Path(typed_path("--output", _OUTPUT.value))


def _run_mode(mode: str, files: Sequence[str], workdir: Path | None, output: Path | None) -> None:
    config = _GIVEN.config
    match mode:
        case "train":
            from deit_jax.modes.train import train
            from deit_jax.parallel.distributed import lost_processes_told

            with lost_processes_told():
                train(_given(config), _given(workdir))
        case "eval":
            from deit_jax.modes.evaluate import evaluate

            evaluate(_given(config), workdir, checkpoint=_CHECKPOINT.value, output=output)
        case "export":
            from deit_jax.modes.export import export

            names = {"layout": _LAYOUT.value, "which": _WEIGHTS.value, "checkpoint": _CHECKPOINT.value}
            export(_given(workdir), _given(output), **names, opset=_OPSET.value)
        case "preview":
            from deit_jax.modes.preview import preview

            preview(_given(config), _given(output))
        case "compile":
            from deit_jax.modes.compile import compile_step

            compile_step(_given(config), _given(_TOPOLOGY.value), output=output, search_batch=_SEARCH_BATCH.value)
        case "analyze":
            from deit_jax.modes.analyze import analyze

            analyze(
                _given(workdir), config=config, others=[_network(entry) for entry in _COMPARE.value], which=_WEIGHTS.value,
                image_files=[typed_path("--images", name) for name in _IMAGES.value], image_size=_IMAGE_SIZE.value, output=output,
            )  # fmt: skip
        case "predict":
            from deit_jax.modes.predict import predict

            predict(
                files, workdir=workdir, config=config, which=_WEIGHTS.value, checkpoint=_CHECKPOINT.value, output=output
            )
        case "throughput":
            from deit_jax.modes.throughput import throughput

            measures = tuple(dict.fromkeys(_MEASURE.value))
            throughput(_given(config), measures=measures, batch_size=_BATCH_SIZE.value, runs=_RUNS.value, output=output)
        case "models":
            from deit_jax.modes.models import show_models

            show_models(output=output)
        case "figures":
            from deit_jax.modes.figures import draw

            draw(
                _given(_FIGURE.value),
                _given(output),
                workdirs=[folder("--results", name) for name in _RESULTS.value],
                which=_WEIGHTS.value,
            )

        case "report":
            from deit_jax.modes.report import report

            report(_given(workdir), config=config, which=_WEIGHTS.value, output=output)


_Value = TypeVar("_Value")


def _given(value: _Value | None) -> _Value:
    """A flag that _NEEDS has made sure of."""
    assert value is not None
    return value


def _network(entry: str) -> str:
    """An entry of --compare: a path, or a model's name, a colon and a path."""
    name, colon, weights = entry.partition(":")
    return f"{name}:{typed_path('--compare', weights)}" if colon else typed_path("--compare", entry)


def _warn_of_what_has_no_effect(config: ConfigDict) -> None:
    """Name the fields that other fields make useless, in one line: whoever set them believes that they do something."""
    from deit_jax.reporting import console

    useless = [f"config.{name} ({reason})" for name, reason in without_effect(config, _GIVEN.typed)]
    if useless:
        console.warn(f"without effect: {', '.join(useless)}")


def _tell_packaged_file(path: Path) -> None:
    """Say so where --config's file is not in the current folder: the user may have changed another of that name."""
    from deit_jax.reporting import console

    if path.parent == own_configs():
        console.say(f"configs/{path.name} is not in this folder: {path}, which comes with deit_jax, is taken")


def _check_predict(files: Sequence[str]) -> None:
    if not files:
        raise UsageError("no image is given: run.py --mode=predict --workdir=WORKDIR images/*.jpg")
    if (_WORKDIR.value is None) == (_CONFIG.value is None):
        raise UsageError("predict takes either --workdir, of a training run, or --config with --config.model.weights")


def _prepare_process(config: ConfigDict, *, beside_workdir: bool = False) -> None:
    """What has to be set before anything large is allocated, compiled or asked of a device.

    beside_workdir: several processes keep compiled programs there later, see `share_compiled_programs`.
    """
    import jax

    from deit_jax.parallel import distributed
    from deit_jax.parallel.compilation_cache import keep_compiled_programs, shares_programs
    from deit_jax.parallel.host_memory import keep_freed_memory
    from deit_jax.parallel.platforms import require_devices, unused_accelerator, will_compute_on_cpu
    from deit_jax.reporting import console

    if config.parallel.keep_host_memory and will_compute_on_cpu():
        keep_freed_memory()  # before JAX starts its threads: later it often has no effect
    cache = config.parallel.compilation_cache
    unsafe = keep_compiled_programs(cache)
    if jax.distributed.is_initialized():
        raise UsageError(
            "this process was one of several in an earlier run, which JAX cannot leave: start a new process for each, "
            f"python run.py {shlex.join(sys.argv[1:])}"
        )
    told = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    parallel = config.parallel
    distributed.start(*told, heartbeat_seconds=parallel.heartbeat_seconds, join_seconds=parallel.join_seconds)
    require_devices()
    console.mute(not distributed.is_main_process())
    if unsafe and not (beside_workdir and shares_programs(cache)):  # else they are kept in another folder, see there
        console.warn(unsafe)
    if "JAX_PLATFORMS" not in os.environ and (warning := unused_accelerator()) is not None:
        console.warn(warning)
