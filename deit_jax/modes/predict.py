"""--mode=predict: prints the most probable classes of image files."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.config import ConfigError, default_config
from deit_jax.config_check import validate
from deit_jax.data.decoding import EvaluationCrop, evaluation_crop
from deit_jax.data.known_sets import known_set
from deit_jax.data.registry import open_source
from deit_jax.data.sources import DataError
from deit_jax.inference.classifier import Classifier, Prediction
from deit_jax.modes.evaluate import without_teacher
from deit_jax.network import Network, is_another_crop, load_network, say_of_another_size
from deit_jax.network_sources import wanted_by
from deit_jax.printable import in_a_spreadsheet
from deit_jax.storage.files import as_file, write_file
from deit_jax.storage.workdir import WorkdirLike
from deit_jax.weights.class_names import imagenet_class_names

SHOWN = 5  # classes per image
_IMAGENET = "imagenet2012"


def predict(
    files: Sequence[str],
    *,
    workdir: WorkdirLike | None = None,
    config: ConfigDict | None = None,
    which: str = "raw",
    checkpoint: str = "newest",
    output: Path | None = None,
) -> list[list[Prediction]]:
    """Prints, returns and optionally writes to `output` (.json or .csv) the five most probable classes of every file.

    The network is that of `workdir`, or else of `config.model.weights`; the configuration needs no teacher. Raises ConfigError,
    CheckpointError, WeightsError or DataError, each with a one-line message, before anything is written.
    """
    if output is not None and output.suffix.lower() not in (".json", ".csv"):
        raise ConfigError(f"--output={output}: predictions are written as .json or .csv")
    if workdir is not None:
        network = load_network(workdir, kind="workdir", which=which, checkpoint=checkpoint)
    else:
        config = without_teacher(default_config() if config is None else config)
        validate(config)
        network = _configured_network(config, which, checkpoint)
    classifier = Classifier.from_network(network)
    predictions = cast(
        list[list[Prediction]], classifier(list(files), SHOWN)
    )  # a list, since several images are passed
    console.say(classifier.description)
    rows = [
        (file if rank == 0 else "", prediction.label, f"{prediction.probability:.4f}")
        for file, best in zip(files, predictions, strict=True)
        for rank, prediction in enumerate(best)
    ]
    console.table(f"{len(files):,} image{'s' * (len(files) != 1)}", ("file", "class", "probability"), rows)
    if output is not None:
        _write(output, files, predictions)
    return predictions


def _configured_network(config: ConfigDict, which: str, checkpoint: str) -> Network:
    """Loads `config.model.weights`; the configuration supplies the preprocessing and class names that the weights lack."""
    weights = config.model.weights
    if not weights:
        raise ConfigError(
            "nothing to predict with: give the --workdir of a training run, or --config.model.weights=FILE (or =pretrained)"
        )
    known = known_set(config.data.name) if config.data.source == "tfds" else None
    wanted = wanted_by(config, likely_classes=known.num_classes if known else None)
    which = "ema" if config.model.variables == "ema" else which
    network = load_network(weights, wanted, which=which, checkpoint=checkpoint, image_size=config.image_size)
    say_of_another_size(network, config.image_size, "used")
    names = network.class_names
    if names is None and weights != "pretrained":
        names = _class_names(config, network.model.num_classes)
    crop = None if network.step is None and _sets_crop(config) else network.crop
    _warn_of_unused(config, network, crop)
    return dataclasses.replace(
        network,
        crop=evaluation_crop(config.evaluation, network.image_size) if crop is None else crop,
        mean=network.mean or tuple(config.augment.mean),
        std=network.std or tuple(config.augment.std),
        class_names=names,
    )


def _warn_of_unused(config: ConfigDict, network: Network, crop: EvaluationCrop | None) -> None:
    """Warns if the configuration has other preprocessing than the default, but that of the network is used.

    crop: the network's; None: it is not used.
    """
    unused: list[tuple[str, object, object]] = []
    if crop is not None and _sets_crop(config):
        other = evaluation_crop(config.evaluation, network.image_size)
        unused += [("config.evaluation", other, crop)] if is_another_crop(network, other) else []
    for name, trained in (("mean", network.mean), ("std", network.std)):
        value, default = tuple(config.augment[name]), tuple(default_config().augment[name])
        if trained is not None and value not in (trained, default):
            unused.append((f"config.augment.{name}", value, trained))
    for field, given, own in unused:
        console.warn(f"{network.description}: {field} is not used, {given}: the network's own is used, {own}")


def _sets_crop(config: ConfigDict) -> bool:
    """Whether the configuration has a crop other than the default, which precedes the one declared next to the weights."""
    default = default_config().evaluation
    return any(config.evaluation[name] != default[name] for name in ("protocol", "crop_ratio"))


def _class_names(config: ConfigDict, num_classes: int) -> tuple[str, ...] | None:
    """Class names of the configuration's data, for ImageNet even without its images; None if unavailable or of another number."""
    if config.data.source == "tfds" and config.data.name.startswith(_IMAGENET):
        names = imagenet_class_names()
    else:
        try:
            names = open_source(config.data, "eval").class_names
        except DataError:
            return None
    if names is not None and not (len(names) == num_classes or (config.num_classes and len(names) < num_classes)):
        console.warn(f"classes are shown by number: config.data has {len(names)} names, the network {num_classes}")
        return None
    return names


def _write(path: Path, files: Sequence[str], predictions: Sequence[Sequence[Prediction]]) -> None:
    if path.suffix.lower() == ".json":
        by_file = zip(files, predictions, strict=True)
        content = [{"file": file, "predictions": [each._asdict() for each in best]} for file, best in by_file]
        write_file(path, as_file(content), ConfigError)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "rank", *Prediction._fields))
    for file, best in zip(files, predictions, strict=True):
        writer.writerows(
            (in_a_spreadsheet(file), rank, *each._replace(label=in_a_spreadsheet(each.label)))
            for rank, each in enumerate(best, start=1)
        )
    write_file(path, text.getvalue(), ConfigError)
