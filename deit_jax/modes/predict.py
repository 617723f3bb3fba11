"""--mode=predict: image files in, a table of classes and probabilities out."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from ml_collections import ConfigDict

from deit_jax.config import ConfigError
from deit_jax.data.decoding import evaluation_crop
from deit_jax.data.known_sets import known_set
from deit_jax.data.registry import open_source
from deit_jax.data.sources import DataError
from deit_jax.inference.class_names import imagenet_class_names, readable
from deit_jax.inference.classifier import Classifier, Prediction
from deit_jax.models import native_image_size
from deit_jax.printable import in_a_spreadsheet
from deit_jax.reporting import console
from deit_jax.storage.files import as_file, write_file
from deit_jax.training.plan import compute_dtype
from deit_jax.training.program import build_model
from deit_jax.weights import load_pretrained, load_weights
from deit_jax.weights.files import is_weights
from deit_jax.weights.labels import read_class_names

SHOWN = 5  # classes of an image
_IMAGENET = "imagenet2012"


def predict(
    files: Sequence[str],
    *,
    workdir: Path | None = None,
    config: ConfigDict | None = None,
    which: str = "raw",
    checkpoint: str = "newest",
    output: Path | None = None,
) -> list[list[Prediction]]:
    """Print, and write to `output` (.json or .csv), the five most probable classes of every file; returns them.

    The network is that of `workdir`, else the one of `config.model.weights`. Raises ConfigError, CheckpointError, WeightsError or
    DataError, each with one clear line; nothing is written then.
    """
    if output is not None and output.suffix.lower() not in (".json", ".csv"):
        raise ConfigError(f"--output={output}: predictions are written as .json or .csv")
    if workdir is not None:
        classifier = Classifier.from_workdir(workdir, which, checkpoint)
    else:
        classifier = _of_config(config, which, checkpoint)
    predictions = cast(list[list[Prediction]], classifier(list(files), SHOWN))  # one of several images each
    console.say(classifier.description)
    rows = [
        (file if rank == 0 else "", one.label, f"{one.probability:.4f}")
        for file, best in zip(files, predictions, strict=True)
        for rank, one in enumerate(best)
    ]
    console.table(f"{len(files):,} image{'s' * (len(files) != 1)}", ("file", "class", "probability"), rows)
    if output is not None:
        _write(output, files, predictions)
    return predictions


def _of_config(config: ConfigDict, which: str, checkpoint: str) -> Classifier:
    """The network that `config.model.weights` names: "pretrained", a weights file, or the workdir of a run."""
    weights, name = config.model.weights, config.model.name
    if not weights:
        raise ConfigError(
            "there is nothing to predict with: give the --workdir of a training run, or --config.model.weights=FILE "
            "(or =pretrained)"
        )
    if weights != "pretrained" and not is_weights(Path(weights)):
        return Classifier.from_workdir(weights, which, checkpoint)
    try:
        size = config.image_size or native_image_size(name)
    except ValueError as error:
        raise ConfigError(f"config.model: {error}") from error
    own_names = None if weights == "pretrained" else read_class_names(weights)
    names = readable(own_names) if own_names else _class_names(config, published=weights == "pretrained")
    known = known_set(config.data.name)
    num_classes = 1000 if weights == "pretrained" else config.num_classes or (names and len(names))
    num_classes = num_classes or (known.num_classes if known else 1000)
    model = build_model(config, num_classes=num_classes, image_size=size, compute_dtype=compute_dtype(config))
    if weights == "pretrained":
        _, variables = load_pretrained(name, image_size=size, dtype=model.dtype, **dict(config.model.overrides))
    else:
        averaged = "ema" if config.model.variables == "ema" else None
        variables = load_weights(weights, model, which=averaged, report=console.say)
    return Classifier(
        model,
        variables,
        crop=evaluation_crop(config.evaluation, size),
        mean=config.augment.mean,
        std=config.augment.std,
        class_names=names if names and len(names) <= num_classes else None,
        description=f"{name}, {'published weights' if weights == 'pretrained' else f'weights of {weights}'}",
    )


def _class_names(config: ConfigDict, *, published: bool) -> tuple[str, ...] | None:
    """Those of the configuration's data, ImageNet's also without its images; None where they are not here."""
    if published or (config.data.source == "tfds" and config.data.name.startswith(_IMAGENET)):
        return imagenet_class_names()
    try:
        return readable(open_source(config.data, "eval").class_names)
    except DataError:
        return None


def _write(path: Path, files: Sequence[str], predictions: Sequence[Sequence[Prediction]]) -> None:
    if path.suffix.lower() == ".json":
        by_file = zip(files, predictions, strict=True)
        found = [{"file": file, "predictions": [one._asdict() for one in best]} for file, best in by_file]
        write_file(path, as_file(found), ConfigError)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "rank", *Prediction._fields))
    for file, best in zip(files, predictions, strict=True):
        writer.writerows(
            (in_a_spreadsheet(file), rank, *one._replace(label=in_a_spreadsheet(one.label)))
            for rank, one in enumerate(best, start=1)
        )
    write_file(path, text.getvalue(), ConfigError)
