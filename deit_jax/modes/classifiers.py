"""Trained networks by what a user types: workdirs of this project, weights files, published weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn

from deit_jax.config import ConfigError, recorded_config
from deit_jax.data.classes import difference
from deit_jax.inference.class_names import names_of_weights
from deit_jax.models import create_model, list_models, native_image_size
from deit_jax.reporting import console
from deit_jax.storage.workdir import CONFIG, Workdir
from deit_jax.training.program import build_recorded_model
from deit_jax.training.record import read_config
from deit_jax.training.trained_weights import load_variables
from deit_jax.weights import load_pretrained, load_weights
from deit_jax.weights.files import is_weights


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained network, and what its images have to be like."""

    label: str  # for people, short
    description: str  # for people: name and origin of the weights
    model: nn.Module
    variables: Any
    image_size: int  # pixels
    mean: tuple[float, ...]  # of RGB in [0, 1]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None = None  # in the order of the outputs; None: not known


def load_classifier(entry: str, *, which: str, like: Classifier | None = None) -> Classifier:
    """The network of `entry`: a workdir; a weights file of the model of `like`; MODEL:FILE or MODEL:pretrained by a model's name.

    which: "raw" or "ema", of workdirs. like: what a weights file does not tell is taken from it (classes, type, normalisation).
    Raises ConfigError, CheckpointError or WeightsError, each with one clear line.
    """
    name, _, weights = entry.partition(":")
    named = bool(weights) and name in list_models()
    if like is None or not (named or is_weights(Path(entry))):
        return _from_workdir(Path(entry), which)
    fields = {"mean": like.mean, "std": like.std}
    if not named:
        variables = load_weights(entry, like.model, report=console.say)
        return Classifier(
            Path(entry).name, f"weights of {entry}", like.model, variables, image_size=like.image_size,
            class_names=names_of_weights(entry, like.class_names or ()), **fields,
        )  # fmt: skip
    size, classes, class_names = native_image_size(name), like.model.num_classes, None
    if weights == "pretrained":
        model, variables = load_pretrained(name, classes, size, dtype=like.model.dtype)
    else:
        model = create_model(name, classes, size, dtype=like.model.dtype)
        variables, class_names = (
            load_weights(weights, model, report=console.say),
            names_of_weights(weights, like.class_names or ()),
        )
    description = f"{name}, weights of {weights}"
    return Classifier(name, description, model, variables, image_size=size, class_names=class_names, **fields)


def _from_workdir(workdir: Path, which: str) -> Classifier:
    record = read_config(workdir)
    config = recorded_config(record)
    variables, step = load_variables(workdir, which)
    return Classifier(
        label=workdir.name or str(workdir),
        description=f"{config.model.name}, {which} weights of {workdir} after step {step:,}",
        model=build_recorded_model(record),
        variables=variables,
        image_size=record["resolved"]["image_size"],
        mean=tuple(config.augment.mean),
        std=tuple(config.augment.std),
        class_names=tuple(record["resolved"].get("class_names") or ()) or None,
    )


def load_classifiers(workdir: Path, others: Sequence[str], *, which: str) -> list[Classifier]:
    """Those of `workdir`, of the teacher that was trained in it if there is one, and of `others`, under labels that differ.

    Raises ConfigError if they do not answer in the same classes, and as `load_classifier`.
    """
    first = load_classifier(str(workdir), which=which)
    found = [first]
    own_teacher = Workdir.at(workdir).teacher
    if own_teacher.has(CONFIG):
        teacher = load_classifier(str(own_teacher), which=which)
        found.append(dataclasses.replace(teacher, label=f"{first.label}/teacher"))
    found += [load_classifier(entry, which=which, like=first) for entry in others]
    for other in found:
        if other.model.num_classes != first.model.num_classes:
            raise ConfigError(
                f"{other.description} answers in {other.model.num_classes} classes, {first.description} in "
                f"{first.model.num_classes}: their decisions cannot be compared"
            )
        if other.class_names and first.class_names and other.class_names != first.class_names:
            raise ConfigError(
                f"{other.description} answers in other classes than {first.description} "
                f"({difference(other.class_names, first.class_names)}): their decisions cannot be compared"
            )
    labels: list[str] = []
    for classifier in found:
        label, count = classifier.label, 2
        while label in labels:
            label, count = f"{classifier.label} ({count})", count + 1
        labels.append(label)
    return [dataclasses.replace(classifier, label=label) for classifier, label in zip(found, labels, strict=True)]
