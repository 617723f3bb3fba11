"""--mode=predict: image files in, a table of classes and probabilities out."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.config import ConfigError
from deit_jax.data.decoding import evaluation_crop
from deit_jax.data.known_sets import known_set
from deit_jax.data.registry import open_source
from deit_jax.data.sources import DataError
from deit_jax.inference.classifier import Classifier, Prediction
from deit_jax.network import Network, load_network, wanted_by
from deit_jax.printable import in_a_spreadsheet
from deit_jax.storage.files import as_file, write_file
from deit_jax.weights.class_names import imagenet_class_names

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
        network = load_network(workdir, kind="workdir", which=which, checkpoint=checkpoint)
    else:
        network = _of_config(config, which, checkpoint)
    classifier = Classifier.from_network(network)
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


def _of_config(config: ConfigDict, which: str, checkpoint: str) -> Network:
    """The network that `config.model.weights` names; what it does not know of its images is as the configuration says."""
    weights = config.model.weights
    if not weights:
        raise ConfigError(
            "there is nothing to predict with: give the --workdir of a training run, or --config.model.weights=FILE "
            "(or =pretrained)"
        )
    known = known_set(config.data.name)
    wanted = wanted_by(config, likely_classes=known.num_classes if known else None)
    which = "ema" if config.model.variables == "ema" else which
    network = load_network(weights, wanted, which=which, checkpoint=checkpoint, image_size=config.image_size)
    names = network.class_names
    if names is None and weights != "pretrained":
        names = _class_names(config, network.model.num_classes)
    return dataclasses.replace(
        network,
        crop=network.crop or evaluation_crop(config.evaluation, network.image_size),
        mean=network.mean or tuple(config.augment.mean),
        std=network.std or tuple(config.augment.std),
        class_names=names,
    )


def _class_names(config: ConfigDict, num_classes: int) -> tuple[str, ...] | None:
    """Those of the configuration's data, ImageNet's also without its images; None if they are not here, or do not fit."""
    if config.data.source == "tfds" and config.data.name.startswith(_IMAGENET):
        names = imagenet_class_names()
    else:
        try:
            names = open_source(config.data, "eval").class_names
        except DataError:
            return None
    if names is not None and not (len(names) == num_classes or (config.num_classes and len(names) < num_classes)):
        console.warn(f"classes are called by number: config.data has {len(names)}, the network {num_classes}")
        return None
    return names


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
