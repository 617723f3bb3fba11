"""The modes: for each its name, summary, example, flags, requirements and the function that runs it.

The flags of the command line, its checks, --help and docs/options.md follow from these declarations. Slow imports happen when a
mode starts, so that --help and mistakes in flags are answered at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from deit_jax.errors import UserError, refuse_address
from deit_jax.paths import run_place, typed_path


class UsageError(UserError):
    """An invalid command line; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag --name.

    Attributes:
        type: str, int, bool or list. A list is given as texts separated by commas; with choices the flag is repeated.
        missing: the error message if a mode needs the flag and it is not given.
    """

    name: str
    meaning: str
    type: type = str
    default: Any = None
    choices: tuple[str, ...] = ()
    missing: str = ""


@dataclasses.dataclass(frozen=True)
class Given:
    """The command line as a mode gets it. None: not given, which is ruled out for the flags in `Mode.needs`."""

    config: Any  # ConfigDict or None
    workdir: Any  # Path, the address of a bucket, or None
    output: Any  # Path or None; a text, if it is an address
    files: Sequence[str]
    flags: Mapping[str, Any]  # the values of the mode's own flags, by name


@dataclasses.dataclass(frozen=True)
class Mode:
    """A value of --mode.

    Attributes:
        summary: what the mode does, for --help.
        example: a command.
        run: the function that runs it.
        needs: names of required flags.
        takes: "config" or "workdir" if they are optional.
        output: what --output is; "": the mode does not have this flag.
        output_file: whether it is always a file; then it is checked before the mode runs.
        flags: the mode's own flags.
        files: whether file names may be given, without a flag.
        check: refuses other invalid combinations, before anything is imported.
        devices: "prepared": set up for a computation, perhaps with several processes, as configured; "found": requested devices
            must exist; "untouched".
        shares_programs: whether several processes keep compiled programs next to the workdir (`share_compiled_programs`).
        output_address: whether --output may be an address, such as gs://BUCKET/DIR; it is then a text.
        prints: what standard output has without --output: "nothing" that is not also in files; a "page", which a reader may cut
            off, as `| head` does; a "result", which must be read to the end.
    """

    name: str
    summary: str
    example: str
    run: Callable[[Given], object]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    output: str = ""
    output_file: bool = False
    flags: tuple[Flag, ...] = ()
    files: bool = False
    check: Callable[[Given], None] | None = None
    devices: Literal["prepared", "found", "untouched"] = "prepared"
    shares_programs: bool = False
    output_address: bool = False
    prints: Literal["nothing", "page", "result"] = "nothing"

    def accepts(self, flag: str) -> bool:
        """Whether a flag of this package has an effect in this mode."""
        if flag in {each.name for each in PROCESSES}:
            return self.devices == "prepared"
        if flag == "output":
            return bool(self.output)
        return flag in (*self.needs, *self.takes, *(each.name for each in self.flags))


# fmt: off
GENERAL = (
    Flag("config", "the configuration file, e.g. configs/quickstart.py; some have an argument, e.g. "
        "configs/deit.py:small,distilled",
        missing="--config is missing, e.g. --config=configs/quickstart.py (--help lists all flags)"),
    Flag("workdir", "the folder of the run, or gs://BUCKET/RUN or s3://BUCKET/RUN: checkpoints, metrics, results; created if it "
        "does not exist",
        missing="--workdir is missing: the folder for checkpoints, metrics and results"),
    Flag("output", "the file or folder to write to, depending on the mode",
        missing="--output is missing: the file or folder to write to"),
)
PROCESSES = (
    Flag("coordinator", "host:port of process 0. TPU pods, Slurm and Open MPI 4 need no such flag (docs/pods.md)"),
    Flag("num_processes", "the number of processes", int),
    Flag("process_id", "the number of this process, from 0", int),
)
PAGES = (  # printed instead of running the mode
    Flag("list", "print the rows of the paper as commands, with the published figure and the expected cost. --list=table8, "
        "--list=figure3 or --list=ablation prints only those; with --output=F.md they are written as Markdown"),
    Flag("version", "print the versions, the backend and the devices", bool, default=False),
)
_WEIGHTS = Flag("weights", "the trained weights or their moving average", default="raw", choices=("raw", "ema"))
_CHECKPOINT = Flag("checkpoint", "newest, best (highest top-1 of those kept) or a step number",
    default="newest")

MODES: dict[str, Mode] = {}


def _mode(name: str, summary: str, example: str, **facts: Any) -> Callable[[Callable[[Given], object]], object]:
    """Declares a mode; decorates the function that runs it."""

    def declare(run: Callable[[Given], object]) -> Callable[[Given], object]:
        MODES[name] = Mode(name, summary, f"python run.py {example}", run, **facts)
        return run

    return declare


@_mode("train", "start a run, or resume the one in --workdir. The default mode.",
    "--config=configs/quickstart.py --workdir=runs/quickstart",
    needs=("config", "workdir"), shares_programs=True)
def _train(given: Given) -> None:
    from deit_jax.modes.train import train
    from deit_jax.parallel.distributed import explain_lost_processes

    with explain_lost_processes():
        train(given.config, given.workdir)


@_mode("record", "write the teacher's answers to all images of a training; other trainings learn from them without a teacher.",
    "--mode=record --config=configs/quickstart.py:soft --output=answers",
    needs=("config", "output"), output="the folder of the answers; missing ones are added",
    flags=(
        Flag("teacher", "a teacher that replaces config.teacher's network: my_module:function, a function from images to logits "
            "in any framework; timm:NAME; or hf:NAME, from transformers (docs/distillation.md)"),))
def _record(given: Given) -> None:
    from deit_jax.modes.record import record
    from deit_jax.parallel.distributed import explain_lost_processes

    with explain_lost_processes():
        record(given.config, given.output, teacher=given.flags["teacher"])


def _check_evaluate(given: Given) -> None:
    if given.workdir is None and given.config is None:
        raise UsageError("eval takes --workdir of a training run, or --config with --config.model.weights, or both")


@_mode("eval", "score a checkpoint of --workdir, by default on the images of its training, or config.model.weights.",
    "--mode=eval --workdir=runs/quickstart",
    takes=("config", "workdir"), output="a JSON file; default: WORKDIR/evaluation.json", output_file=True, flags=(_CHECKPOINT,),
    check=_check_evaluate, shares_programs=True, prints="result")
def _evaluate(given: Given) -> None:
    from deit_jax.modes.evaluate import evaluate

    evaluate(given.config, given.workdir, checkpoint=given.flags["checkpoint"], output=given.output)


@_mode("report", "write report.html of --workdir again: results, curves, images and attention.",
    "--mode=report --workdir=runs/quickstart",
    needs=("workdir",), takes=("config",), output="the page; default: WORKDIR/report.html", output_file=True, flags=(_WEIGHTS,))
def _report(given: Given) -> None:
    from deit_jax.modes.report import report

    report(given.workdir, config=given.config, which=given.flags["weights"], output=given.output)


def _check_predict(given: Given) -> None:
    if not given.files:
        raise UsageError("no image is given, e.g. run.py --mode=predict --workdir=WORKDIR images/*.jpg")
    if (given.workdir is None) == (given.config is None):
        raise UsageError("predict takes either --workdir of a training run, or --config with --config.model.weights")


@_mode("predict", "classify image files with the network of --workdir or of config.model.weights.",
    "--mode=predict --workdir=runs/quickstart images/*.jpg",
    takes=("config", "workdir"), output="a .json or .csv file", output_file=True, flags=(_WEIGHTS, _CHECKPOINT), files=True,
    check=_check_predict, prints="result")
def _predict(given: Given) -> None:
    from deit_jax.modes.predict import predict

    names = {"which": given.flags["weights"], "checkpoint": given.flags["checkpoint"]}
    predict(given.files, workdir=given.workdir, config=given.config, **names, output=given.output)


def _check_export(given: Given) -> None:
    alone = [name for name in ("private", "revision", "license") if given.flags[name]]
    if alone and given.flags["push"] is None:
        raise UsageError(f"--{alone[0]} is for --push=OWNER/NAME, which is missing")


@_mode("export", "write a checkpoint of --workdir for another framework.",
    "--mode=export --workdir=runs/quickstart --output=exported --layout=timm",
    needs=("workdir", "output"),  # the workdir has its own configuration
    output="a folder (weights, and the files from which timm or transformers build the model; layout=jax: program and "
        "preprocessing); or a .safetensors or .pth file for the tensors only; for layout=onnx an .onnx file",
    flags=(
        Flag("layout", "the framework whose tensor names are used; hf: Hugging Face transformers, flax: this package. jax, onnx: "
            "write a program with its weights instead, which runs without this package; jax_float: one for normalised "
            "images, for config.teacher.weights. mmpretrain needs --output=FILE.pth and PyTorch (the extra torch)",
            default="timm", choices=("timm", "hf", "mmpretrain", "flax", "jax", "jax_float", "onnx")),
        Flag("push", "also upload the folder to the Hugging Face hub, with a model card from the run: OWNER/NAME, created if it "
            "does not exist; layouts timm, hf and flax"),
        Flag("private", "push: create the repository as a private one; an existing public one is an error", bool, default=False),
        Flag("revision", "push: the branch, created from the main one; default: the main one"),
        Flag("license", "push: the licence of the weights, as the hub calls it, e.g. apache-2.0; default: the card states none"),
        Flag("opset", "layout=onnx: the version of ONNX's operators, 18 to 23; default 18, which the oldest runtimes read", int),
        _WEIGHTS, _CHECKPOINT),
    check=_check_export, devices="found")
def _export(given: Given) -> None:
    from deit_jax.modes.export import Push, export

    flags = given.flags
    push = None
    if flags["push"] is not None:
        push = Push(flags["push"], flags["private"], flags["revision"], flags["license"] or "")
    names = {"layout": flags["layout"], "which": flags["weights"], "checkpoint": flags["checkpoint"]}
    export(given.workdir, given.output, **names, opset=flags["opset"], push=push)


@_mode("prepare", "write images of any source as array_record shards; after an interruption the same command continues.",
    "--mode=prepare --config=configs/quickstart.py --output=prepared",
    needs=("config", "output"),
    output="the folder of the shards, or an address: gs://BUCKET/DIR or s3://BUCKET/DIR. In a complete folder the shards are "
        "verified, and damaged ones written again",
    flags=(
        Flag("shortest_side", "resize larger images until their shorter side has this many pixels (antialiased bicubic); "
            "default: all images keep their bytes", int),
        Flag("quality", "of the JPEG files that resized images become, 1 to 100; colors are not subsampled", int, default=95),
        Flag("shard_images", "images per shard", int, default=2000),
        Flag("splits", "the splits to write: train (config.data.train_split), validation (config.data.eval_split); repeat the "
            "flag for both", list, default=["train", "validation"], choices=("train", "validation"))),
    devices="untouched", output_address=True)
def _prepare(given: Given) -> None:
    from deit_jax.data.shard_writing import Settings
    from deit_jax.modes.prepare import prepare_images

    settings = Settings(**{name: given.flags[name] for name in ("shortest_side", "quality", "shard_images")})
    splits = list(dict.fromkeys(given.flags["splits"]))
    prepare_images(given.config, str(given.output), splits=splits, settings=settings)


def _check_preview(given: Given) -> None:
    listed = given.flags["held_out_list"]
    if listed == "":
        raise UsageError("--held_out_list is empty: give a file (is a shell variable unset?)")
    refuse_address("--held_out_list", listed, UsageError)


@_mode("preview", "check the data: print the numbers of images and classes and what is skipped, and draw the first training "
    "images after each stage of the augmentation.",
    "--mode=preview --config=configs/quickstart.py --output=preview.png",
    needs=("config", "output"), output="the picture to write", output_file=True,
    flags=(
        Flag("held_out_list", "a text file for the paths of the evaluation images, one per line, relative to config.data.path: a "
            "teacher that was trained elsewhere must not have seen them"),),
    check=_check_preview)
def _preview(given: Given) -> None:
    from deit_jax.modes.preview import preview

    listed = given.flags["held_out_list"]
    file = None if listed is None else Path(typed_path("--held_out_list", listed))
    preview(given.config, given.output, held_out_list=file)


@_mode("analyze", "compare the network of --workdir, its teacher and others, and inspect its tokens and attention.",
    "--mode=analyze --workdir=runs/quickstart --compare=runs/other",
    needs=("workdir",), takes=("config",), output="a folder; default: WORKDIR/analysis",
    flags=(
        _WEIGHTS,
        Flag("compare", "other networks: workdirs, weights files of the same model, MODEL:FILE or MODEL:pretrained; separated by "
            "commas", list),
        Flag("images", "image files for the attention maps, separated by commas; default: the first evaluation images", list),
        Flag("image_size", "pixels at which position embeddings are compared; default: 384/224 of the network's size", int)))
def _analyze(given: Given) -> None:
    from deit_jax.modes.analyze import analyze

    def network(entry: str) -> str:
        """A path, or a model's name, a colon and a path."""
        name, colon, weights = entry.partition(":")
        return f"{name}:{typed_path('--compare', weights)}" if colon else typed_path("--compare", entry)

    flags = given.flags
    others = [network(entry) for entry in flags["compare"]]
    files = [typed_path("--images", name) for name in flags["images"]]
    analyze(given.workdir, config=given.config, others=others, which=flags["weights"], image_files=files,
        image_size=flags["image_size"], output=given.output)


@_mode("compile", "compile the train step for devices that need not be present; print its memory, collectives and minimum time.",
    "--mode=compile --config=configs/deit.py:base,distilled --topology=v5e-8",
    needs=("config", "topology"), output="a JSON file for the figures; default: the last printed line", output_file=True,
    flags=(
        Flag("topology", "the devices, e.g. v5e-8, v4-64, v6e-8 or h100-8 (an unknown name lists all)",
            missing="--topology is missing: the devices to compile for, e.g. --topology=v5e-8"),
        Flag("search_batch", "search for the largest batch that fits, by several compilations", bool, default=False)),
    devices="untouched", prints="page")
def _compile(given: Given) -> None:
    from deit_jax.modes.compile import compile_step

    topology, search_batch = given.flags["topology"], given.flags["search_batch"]
    compile_step(given.config, topology, output=given.output, search_batch=search_batch)


@_mode("throughput", "measure images/s of inference and training on the local devices, with random weights.",
    "--mode=throughput --config=configs/deit.py:small",
    needs=("config",), output="a JSON file", output_file=True,
    flags=(
        Flag("measure", "what to measure; repeat the flag for both", list, default=["inference", "training"],
            choices=("inference", "training")),
        Flag("batch_size", "images over all devices; default: the largest batch that fits (CPU: the fastest)", int),
        Flag("runs", "timed runs", int, default=30)),
    prints="page")
def _throughput(given: Given) -> None:
    from deit_jax.modes.throughput import throughput

    measures, sizes = given.flags["measure"], {name: given.flags[name] for name in ("batch_size", "runs")}
    throughput(given.config, measures=tuple(dict.fromkeys(measures)), **sizes, output=given.output)


@_mode("models", "print the parameters and multiply-adds of every model.", "--mode=models",
    output="a JSON file", output_file=True, devices="found", prints="page")
def _models(given: Given) -> None:
    from deit_jax.modes.models import show_models

    show_models(output=given.output)


@_mode("figures", "draw the paper's Figure 1 or 3 with your own finished runs added.",
    "--mode=figures --figure=1 --results=runs/a,runs/b --output=figure1.png",
    needs=("figure", "output"), output="the picture to write", output_file=True,
    flags=(
        Flag("figure", "the number of the paper's figure", choices=("1", "3"),
            missing="--figure is missing: 1 (throughput against top-1) or 3 (epochs against top-1)"),
        Flag("results", "workdirs of finished runs, separated by commas", list),
        _WEIGHTS),
    devices="found")
def _figures(given: Given) -> None:
    from deit_jax.modes.figures import draw

    workdirs = [run_place("--results", name) for name in given.flags["results"]]
    draw(given.flags["figure"], given.output, workdirs=workdirs, which=given.flags["weights"])
# fmt: on


_MODE = Flag("mode", "what to do; see below", default="train", choices=tuple(MODES))
FLAGS = {
    flag.name: flag
    for flag in (_MODE, *GENERAL, *PAGES, *PROCESSES, *(flag for mode in MODES.values() for flag in mode.flags))
}
