"""--mode=report: writes report.html of a workdir, as does a finished run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.augment.pipeline import prepare_for_evaluation
from deit_jax.config import ConfigError, default_config, needs_teacher
from deit_jax.config_check import validate
from deit_jax.config_features import described_features
from deit_jax.config_model import described_model
from deit_jax.config_record import completed, recorded_config
from deit_jax.data.decoding import decode, evaluation_crop
from deit_jax.data.loading import eval_batches
from deit_jax.data.registry import open_source
from deit_jax.data.sources import ImageSource, Subset
from deit_jax.errors import UserError, first_line
from deit_jax.evaluation.heads import answer_of
from deit_jax.evaluation.predictions import (
    Predictions,
    confusion_matrix,
    make_predict_step,
    predict,
    spread_indices,
)
from deit_jax.evaluation.tokens import attention_maps, can_inspect
from deit_jax.models.protocol import on_mesh
from deit_jax.modes.evaluate import as_labelled, without_teacher
from deit_jax.network import Network, load_network
from deit_jax.parallel.distributed import is_main_process, wait_for_all
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.sharding import put_batch, replicated, rounded_up
from deit_jax.reporting import html
from deit_jax.reporting import report_sections as sections
from deit_jax.reporting.environment import environment
from deit_jax.reporting.html import Section
from deit_jax.reporting.plots import confusion_picture, undrawable
from deit_jax.reporting.run_log import Pictures, RunLog, read_metrics
from deit_jax.storage.files import UnreadableError, write_file
from deit_jax.storage.workdir import ENVIRONMENT, REPORT, Workdir, WorkdirLike
from deit_jax.training.checkpoint_folder import has_checkpoints
from deit_jax.training.first_images import TRAINING_IMAGES, first_images
from deit_jax.training.record import read_config, recorded_mixing
from deit_jax.training.results import closing_table, read_results

PREDICTED_IMAGES = 2000  # or IMAGES_A_CLASS per class if there are many classes; at most MOST_IMAGES
IMAGES_A_CLASS, MOST_IMAGES = 10, 10_000
_SAMPLES = 8  # sample predictions that are right, and as many that are wrong
_ATTENTION_IMAGES = 4
# Logs pictures: name, images uint8[H, W, 3], captions.
Draw = Callable[[str, Sequence[np.ndarray], Sequence[str]], None]


@dataclasses.dataclass(frozen=True)
class _Predicted:
    """A network's predictions on a sample of the evaluation images."""

    config: ConfigDict
    network: Network
    source: ImageSource
    classes: list[str]
    indices: np.ndarray  # int[N]: the positions in `source` of the readable images of the sample
    predictions: Predictions
    note: str  # describes the sample and the weights
    draw: Draw

    def images(self, rows: np.ndarray) -> np.ndarray:
        """The images of some rows of `indices` as the network sees them: uint8[B, H, W, 3]."""
        crop = evaluation_crop(self.config.evaluation, self.network.image_size)
        return np.stack([crop(decode(self.source[int(index)].image), None) for index in self.indices[rows]])


def report_of_finished_run(workdir: WorkdirLike, log: RunLog | None = None, *, replace: bool = False) -> None:
    """Writes `workdir`/report.html unless it exists; the pictures also go to `log`, if given.

    replace: write it also if it exists, since it is of an earlier result.

    A report that cannot be written is only a warning, since the run is complete. Every process calls this; the main one writes.
    """
    workdir = Workdir.at(workdir)
    if is_main_process():
        try:
            if replace or not workdir.has(REPORT):
                workdir.write_json(ENVIRONMENT, environment())
                console.say("writing the report")
                report(workdir, log=log)
        except Exception as error:  # any error: it must not fail the training
            console.warn(
                f"{workdir}/report.html is not written ({first_line(error)}); to retry: --mode=report --workdir={workdir}"
            )
    wait_for_all("the report is written")


def report(
    workdir: WorkdirLike,
    *,
    config: ConfigDict | None = None,
    which: str = "raw",
    output: Path | None = None,
    log: RunLog | None = None,
) -> Path | str:
    """Writes the report of the run in `workdir` and returns the path of the file, or its address in a bucket.

    Parts whose data or checkpoint are gone are left out, with a note on the page.

    Args:
      workdir: a training run, finished or not.
      config: specifies the data; None: the run's own configuration.
      which: "raw" or "ema" weights, for the predictions and the attention.
      output: the file, replaced if it exists; None: `workdir`/report.html.
      log: also gets the pictures of the evaluation.

    Raises ConfigError if `workdir` has no run, for an invalid `config`, or if the file cannot be written.
    """
    workdir = Workdir.at(workdir)
    record = read_config(workdir)
    if not has_checkpoints(workdir) and not read_metrics(workdir):
        raise ConfigError(f"{workdir}: no step has been trained here yet, so there is nothing to report")
    trained = recorded_config(record)
    if config is not None:
        validate(without_teacher(config))
        trained.data, trained.evaluation = config.data, config.evaluation
        trained.unlabelled.path = config.unlabelled.path or trained.unlabelled.path
    rows, results = read_metrics(workdir), _unless_damaged(lambda: read_results(workdir))
    steps_per_epoch = record["resolved"]["steps_per_epoch"]
    ran, now = _unless_damaged(lambda: workdir.read_json(ENVIRONMENT)), environment()
    teacher = results and results["teacher"] and answer_of(results["teacher"], trained.model.fusion)["top1"]
    parts = [
        _results(record, trained, results),
        sections.curves(rows, steps_per_epoch=steps_per_epoch, teacher_top1=teacher or None),
        _configuration(record),
        _part("training-images", "Training images", lambda: _training_images(trained, record)),
        *_network_parts(trained, workdir, which, log),
        sections.throughput(rows, steps_per_epoch=steps_per_epoch),
        sections.environment(ran and {name: str(value) for name, value in ran.items()}, now),
    ]
    title = f"{trained.model.name} in {workdir.name}"
    page = html.page(title, _lead(record, trained, rows, results), parts)
    if output is None:
        workdir.write(REPORT, page, error=ConfigError)
    else:
        write_file(output, page, ConfigError)
    path = output or (workdir.address(REPORT) if workdir.in_bucket else Path(workdir.address(REPORT)))
    console.say(f"the report is {path}")
    return path


def _lead(
    record: dict[str, Any], config: ConfigDict, rows: list[dict[str, Any]], results: dict[str, Any] | None
) -> str:
    resolved = record["resolved"]
    step = results["step"] if results else max((row["step"] for row in rows), default=0)
    data = config.data.name if config.data.source == "tfds" else config.data.path or config.data.source
    values = {
        "model": f"{described_model(config)}, {resolved['image_size']} pixels",
        "data": f"{data}, {resolved['num_classes']:,} classes",
        **_unlabelled(record, config, step),
        "trained": f"{step:,} steps, {step / resolved['steps_per_epoch']:.4g} epochs" + ("" if results else " so far"),
        "distillation": _distillation(record, config),
    }
    if results:
        best = {name: answer_of(heads, config.model.fusion)["top1"] for name, heads in results["scores"].items()}
        values["top-1"] = ", ".join(f"{top1:.2f} % ({name} weights)" for name, top1 in best.items())
    return html.facts(values)


def _unlabelled(record: dict[str, Any], config: ConfigDict, step: int) -> dict[str, str]:
    """Returns the number of labelled and unlabelled images, and how often they were seen; nothing without unlabelled images."""
    data, rows = record["resolved"].get("data", {}), record["resolved"].get("unlabelled_rows")
    if rows is None or "unlabelled" not in data:
        return {}
    of_kinds = (("train", "labelled", config.train.batch_size - rows), ("unlabelled", "unlabelled", rows))
    shown = (
        f"{data[name]['images']:,} {what}, {count} rows of a batch, each seen {step * count / data[name]['images']:.3g} times"
        for name, what, count in of_kinds
    )
    return {"training images": "; ".join(shown)}


def _distillation(record: dict[str, Any], config: ConfigDict) -> str:
    """Returns the kind of distillation and the teacher."""
    kind, teacher = config.distillation.kind, record["config"]["teacher"]["name"]
    if (answers := record["resolved"].get("answers")) is not None:
        return f"{kind}, recorded answers of {answers['teacher']}"
    features = f", features {described_features(config)}" if config.features.pairs else ""
    return f"{kind}, teacher {teacher}{features}" if needs_teacher(config) else kind


def _configuration(record: dict[str, Any]) -> Section:
    """The fields of a run; with recorded answers, a teacher that the configuration describes had no part in it."""
    fields = completed(record["config"])
    replaced = record["resolved"].get("answers") is not None and not fields["teacher"]["weights"]

    def unused(name: str) -> bool:
        return replaced and name.startswith("teacher.") and name not in ("teacher.answers", "teacher.answers_timeout")

    return sections.configuration(fields, json.loads(default_config().to_json_best_effort()), unused)


def _results(record: dict[str, Any], config: ConfigDict, results: dict[str, Any] | None) -> Section:
    if results is None:
        return sections.left_out("results", "Results", "the run is not finished, or results.json is damaged")
    config = config.copy_and_resolve_references()
    teacher = record["config"]["teacher"]
    config.teacher.name, config.teacher.weights = teacher["name"], teacher["weights"]
    table = closing_table(config, results)
    return sections.results(table.rows, table.extra, title=table.title, notes=[*table.notes, *table.incidents])


def _part(anchor: str, title: str, make: Callable[[], Section]) -> Section:
    """Returns the section, or the reason for its absence if data, weights or memory are missing."""
    try:
        return make()
    except (UserError, jax.errors.JaxRuntimeError) as error:
        return sections.left_out(anchor, title, first_line(error))


def _training_images(config: ConfigDict, record: dict[str, Any]) -> Section:
    mixing, unlabelled = recorded_mixing(record), record["resolved"].get("unlabelled_rows")
    return sections.training_images(
        *first_images(config, TRAINING_IMAGES, mixing, unlabelled).as_trained_on(TRAINING_IMAGES)
    )


def _network_parts(config: ConfigDict, workdir: Workdir, which: str, log: RunLog | None) -> list[Section]:
    """Confusion matrix, sample predictions and attention: the parts that need the weights and the evaluation images."""
    names = ("confusion", "Confusion matrix"), ("predictions", "Sample predictions"), ("attention", "Attention")
    try:
        if jax.process_count() > 1:
            raise UserError(f"the run has several processes; --mode=report --workdir={workdir} in one process adds it")
        source = open_source(config.data, "eval")
        network = load_network(workdir, kind="workdir", which=which)
        source = as_labelled(source, network.class_names, network.model.num_classes, network.where)
        wanted = min(max(PREDICTED_IMAGES, IMAGES_A_CLASS * len(source.class_names)), MOST_IMAGES)
        indices = spread_indices(len(source), wanted)
        predictions = _predict(config, network, Subset(source, indices))
        readable = indices[predictions.positions]  # config.data.on_bad_image may leave some out
    except (UserError, jax.errors.JaxRuntimeError) as error:
        return [sections.left_out(*name, first_line(error)) for name in names]

    whole = len(indices) == len(source)
    sample = f"all {len(source):,}" if whole else f"{len(indices):,}, evenly spaced, of {len(source):,}"
    if len(readable) < len(indices):
        sample += f" ({len(indices) - len(readable):,} of them unreadable)"
    note = f"{sample} evaluation images, {which} weights after step {network.step:,}, the model's own answer."
    unnamed = range(len(source.class_names), network.model.num_classes)  # the model may have more classes than the data
    classes = [*source.class_names, *(f"class {k}" for k in unnamed)]
    matrix = confusion_matrix(predictions.labels, predictions.classes[:, 0], len(classes))

    def draw(name: str, images: Sequence[np.ndarray], captions: Sequence[str]) -> None:
        if log is not None and network.step is not None and len(images):
            log.pictures(network.step, Pictures(f"images/{name}", images, captions, classes))

    if log is not None and len(classes) <= sections.MOST_CLASSES_OF_A_MATRIX:
        draw("confusion", [confusion_picture(matrix, classes)], ["row: class, column: predicted class"])
    numbered = log is not None and log.shows_pictures and bool(undrawable(tuple(classes)))
    predicted = _Predicted(config, network, source, classes, readable, predictions, note, draw)
    parts = [
        sections.confusion(matrix, classes, note, numbered_in_the_log=numbered),
        _part(*names[1], lambda: _samples(predicted)),
    ]
    if can_inspect(network.model):
        parts.append(_part(*names[2], lambda: _attention(predicted)))
    return parts


def _predict(config: ConfigDict, network: Network, source: ImageSource) -> Predictions:
    mesh = make_mesh()
    batch = rounded_up(min(config.evaluation.batch_size, len(source)), mesh)
    crop = evaluation_crop(config.evaluation, network.image_size)
    normalisation = {"mean": tuple(config.augment.mean), "std": tuple(config.augment.std)}
    step = make_predict_step(on_mesh(network.model, mesh), **normalisation)
    variables = jax.device_put(network.variables, replicated(mesh))
    data = config.data
    batches = eval_batches(source, crop, batch, num_threads=data.num_threads, on_bad_image=data.on_bad_image)
    return predict(step, variables, (put_batch(mesh, batch) for batch in batches))


def _samples(predicted: _Predicted) -> Section:
    found, classes = predicted.predictions, predicted.classes
    wrong = np.flatnonzero(~found.right)
    wrong = wrong[np.argsort(-found.probabilities[wrong, 0], kind="stable")][:_SAMPLES]
    right = np.flatnonzero(found.right)
    right = right[spread_indices(len(right), _SAMPLES)]
    samples = {}
    for heading, rows in {"Wrong, most confident first": wrong, "Right, evenly spaced": right}.items():
        images = list(predicted.images(rows)) if len(rows) else []
        samples[heading] = [
            (image, classes[found.labels[row]],
             [(classes[k], float(p)) for k, p in zip(found.classes[row], found.probabilities[row], strict=True)])
            for image, row in zip(images, rows, strict=True)
        ]  # fmt: skip
        captions = [
            f"is {label}, predicted {answers[0][0]} ({100 * answers[0][1]:.1f} %)"
            for _, label, answers in samples[heading]
        ]
        predicted.draw(heading.split(",")[0].lower(), images, captions)
    return sections.predictions(samples, f"Of {predicted.note}")


def _attention(predicted: _Predicted) -> Section:
    config, network = predicted.config, predicted.network
    rows = spread_indices(len(predicted.indices), _ATTENTION_IMAGES)
    images = predicted.images(rows)
    prepared = prepare_for_evaluation(images, tuple(config.augment.mean), tuple(config.augment.std))
    attention = attention_maps(network.model, network.variables, prepared)
    names = [predicted.classes[label] for label in predicted.predictions.labels[rows]]
    maps, rollout = np.asarray(attention.maps), np.asarray(attention.rollout)
    predicted.draw("attention", *sections.attention_pictures(names, images, maps, rollout))
    return sections.attention(names, images, maps, rollout)


def _unless_damaged(read: Callable[[], Any]) -> dict[str, Any] | None:
    try:
        content = read()
    except UnreadableError:
        return None
    return content if isinstance(content, dict) else None
