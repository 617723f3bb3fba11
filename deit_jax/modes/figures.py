"""--mode=figures: the paper's Figures 1 and 3 as pictures, with your own results added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deit_jax import console
from deit_jax.config import ConfigError, needs_logits, needs_teacher
from deit_jax.config_model import has_distillation_token
from deit_jax.config_record import recorded_config
from deit_jax.evaluation.heads import answer_of
from deit_jax.models import native_image_size
from deit_jax.paper.figures import OwnResult, epochs_against_top1, throughput_against_top1
from deit_jax.storage.files import UnreadableError, disk_faults
from deit_jax.storage.workdir import RESULTS, THROUGHPUT, Workdir, WorkdirLike
from deit_jax.training.record import read_config
from deit_jax.training.results import read_results

FIGURES = {"1": throughput_against_top1, "3": epochs_against_top1}
SUFFIXES = (".png", ".pdf", ".svg", ".jpg")


def draw(figure: str, output: Path, *, workdirs: Sequence[WorkdirLike] = (), which: str = "raw") -> Path:
    """Writes a figure of FIGURES to `output`: the published points, and those of the finished runs in `workdirs`.

    which: "raw" or "ema", the weights whose accuracy is shown. Figure 1 also needs WORKDIR/throughput.json, which
    --mode=throughput writes. Raises ConfigError, with one line, for an unknown suffix or a workdir without what the figure shows.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--output={output}: a figure must end in {', '.join(SUFFIXES)}")
    own = [read_result(workdir, which, with_throughput=figure == "1") for workdir in workdirs]
    with disk_faults(lambda reason: ConfigError(f"--output={output} cannot be written ({reason})")):
        FIGURES[figure](output, own)
    console.say(f"figure {figure} with {len(own)} result(s) of your own is in {output}")
    return output


def read_result(workdir: WorkdirLike, which: str, *, with_throughput: bool) -> OwnResult:
    """Reads results.json, config.json and, for `with_throughput`, throughput.json of a finished run.

    The accuracy is that of the model's own answer. Raises ConfigError for a file that is missing or does not fit.
    """
    record = read_config(workdir)
    config = recorded_config(record)
    files = Workdir.at(workdir)
    results = _read(lambda: read_results(files), files.address(RESULTS), "the run is not finished")
    if which not in results["scores"]:
        raise ConfigError(f"{files.address(RESULTS)} has no scores of {which} weights: give another --weights")
    speed: dict[str, Any] = {}
    if with_throughput:
        path = files.address(THROUGHPUT)
        otherwise = f"run.py --mode=throughput --config=THE_SAME --output={path} writes it"
        speed = _read(lambda: files.read_json(THROUGHPUT), path, otherwise)
        if "inference" not in speed:
            raise ConfigError(f"{path} has no inference in it: measure it (--measure=inference)")
        resolved = record["resolved"]
        wanted = config.model.name, resolved["image_size"], config.model.overrides.to_dict()
        if (speed["model"], speed["image_size"], speed["overrides"]) != wanted:
            raise ConfigError(f"{path} is of another model ({speed['model']}, {speed['image_size']} px) than the run's")
    return OwnResult(
        label=files.name,
        data=config.data.name if config.data.source == "tfds" else Path(config.data.path or config.data.source).name,
        kind=_kind(config, record["resolved"]["image_size"]),
        epochs=results["step"] / record["resolved"]["steps_per_epoch"],
        top1=answer_of(results["scores"][which], config.model.fusion)["top1"],
        images_per_second=speed["inference"]["images_per_second"] if speed else None,
        device=f"{speed['devices']} x {speed['device']}, {speed['compute_dtype']}" if speed else "",
    )


def _kind(config: Any, image_size: int) -> str:
    """The kind of distillation, named as in the published curves."""
    kind = config.distillation.kind
    if not needs_teacher(config):
        return "no distillation"
    token = ", token" if has_distillation_token(config) else ""
    resized = f", {image_size}" if image_size != native_image_size(config.model.name) or image_size == 384 else ""
    features = ["feature"] if config.features.pairs else []
    return f"{' and '.join([kind] * needs_logits(config) + features)} distillation{token}{resized}"


def _read(read: Callable[[], Any], path: str, otherwise: str) -> dict[str, Any]:
    try:
        content = read()
    except UnreadableError as error:
        raise ConfigError(str(error)) from error
    if content is None:
        raise ConfigError(f"{path} does not exist: {otherwise}")
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is damaged: {otherwise}")
    return content
