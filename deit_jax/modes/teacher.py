"""Loads the frozen teacher, or the ensemble of teachers, of a configuration."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.config import ConfigError, asks_teacher, needs_logits
from deit_jax.config_model import check_overrides, named_teachers
from deit_jax.data.classes import difference, order_of
from deit_jax.data.registry import open_source
from deit_jax.models import create_model, native_image_size
from deit_jax.models.ensemble import Ensemble, joined_variables, renormalisation
from deit_jax.models.protocol import check_outputs, initial_variables
from deit_jax.network import (
    IMAGENET_CLASSES,
    Network,
    Wanted,
    load_network,
    program_network,
    warn_of_another_normalisation,
)
from deit_jax.storage.workdir import Workdir
from deit_jax.training.plan import compute_dtype
from deit_jax.training.program import build_model, build_recorded_model
from deit_jax.training.record import read_config
from deit_jax.training.state import Variables
from deit_jax.training.teacher import Teacher, freeze
from deit_jax.weights.files import is_workdir, kind_of


def load_teacher(config: ConfigDict, workdir: Path, class_names: tuple[str, ...] | None = None) -> Teacher | None:
    """Loads the frozen teacher of a validated configuration; returns None if there is none, or recorded answers instead.

    The weights are those trained in another workdir or in `workdir`/teacher, a file of another framework, or published ones.
    Several teachers, or one with another normalisation or other classes than the student's, become an `Ensemble`.

    class_names: of the student's training images; None: they are opened to find out.

    Raises ConfigError if it does not fit the student (another model, other classes, another image size), CheckpointError if its
    workdir has no trained weights, WeightsError if a file cannot be downloaded or read, or does not fit.
    """
    if not asks_teacher(config):
        return None
    class_names = class_names or open_source(config.data, "train").class_names
    num_classes = config.num_classes or len(class_names)
    image_size = config.image_size or native_image_size(config.model.name)
    _check_number_of_classes(config, num_classes)
    own = [(config.teacher.name, str(Workdir.at(workdir).teacher))]
    places = named_teachers(config) if config.teacher.recipe is None else own
    members = [
        _load_one(config, number, name, weights, num_classes, class_names, image_size)
        for number, (name, weights) in enumerate(places)
    ]
    return _joined(config, members)


def abstract_teacher(config: ConfigDict, num_classes: int, image_size: int, platform: str) -> Teacher | None:
    """Returns the frozen teacher as shapes and dtypes, as the train step takes it on `platform`, without weights.

    None if the configuration does not distil, or has recorded answers. Raises ConfigError for a teacher that cannot be built.
    """
    if not asks_teacher(config):
        return None
    _check_number_of_classes(config, num_classes)
    models: list[nn.Module | Teacher]
    if config.teacher.recipe is not None:
        recipe = config.teacher.recipe
        models = [build_model(recipe, num_classes=num_classes, image_size=image_size, compute_dtype="float32")]
    else:
        models = [
            _abstract_program(config, weights, num_classes, image_size, platform)
            if kind_of(weights) == "program"
            else _abstract_model(config, name, weights, num_classes, image_size)
            for name, weights in named_teachers(config)
        ]
    frozen = []  # eval_shape returns only arrays

    def variables() -> Variables:
        image = jnp.zeros((1, image_size, image_size, 3))
        dtype = compute_dtype(config, platform)
        key = jax.random.key(0)
        members = [
            it if isinstance(it, Teacher) else freeze(it, initial_variables(it, key, image), "", compute_dtype=dtype)
            for it in models
        ]
        frozen.append(_joined(config, members))
        return frozen[0].variables

    shapes = jax.eval_shape(variables)
    return dataclasses.replace(frozen[0], variables=shapes, description=f"{config.teacher.name}, shapes only")


def _abstract_program(config: ConfigDict, weights: str, num_classes: int, image_size: int, platform: str) -> Teacher:
    network = program_network(weights, platform)
    _check_image_size(network.model, weights, image_size)
    _check_classes(config, network.model.num_classes, num_classes, weights)
    return _program_teacher(config, network)


def _abstract_model(config: ConfigDict, name: str, weights: str, num_classes: int, image_size: int) -> nn.Module:
    if is_workdir(weights) and Path(weights).exists():  # else the shapes follow from the name
        model = build_recorded_model(read_config(Path(weights)))
        _check_image_size(model, weights, image_size)
        if config.teacher.classes is not None:
            _check_classes(config, model.num_classes, num_classes, weights)
        return model
    return _create(config, name, _assumed_classes(config, weights, num_classes), image_size)


def _load_one(
    config: ConfigDict,
    number: int,
    name: str,
    weights: str,
    num_classes: int,
    class_names: tuple[str, ...],
    image_size: int,
) -> Teacher:
    """Loads teacher `number` of the list (from 0), with its classes in the student's order if both have names."""
    where, random = "the published weights" if weights == "pretrained" else weights, weights == "random"

    def check(model: nn.Module) -> None:
        _check_classes(config, model.num_classes, num_classes, where)
        _check_image_size(model, where, image_size)

    wanted = Wanted(
        name,
        functools.partial(_create, config, name),
        image_size,
        num_classes=_assumed_classes(config, weights, num_classes) if random else None,
        class_names=class_names,
        section="config.teacher",
        seed=config.seed,
        position=number,
    )
    network = load_network(weights, wanted, which=config.teacher.variables, check=check)
    if random:
        console.warn(f"the teacher {name} has RANDOM weights (config.teacher.weights='random'): it teaches nothing")
    if network.resized:
        raise ConfigError(
            f"the teacher {name}, {network.where} was trained at another image size than the student's {image_size} pixels (its "
            f"position embedding would be resized from {network.resized}): {_fine_tune_first(weights, image_size)}"
        )
    if network.program:
        teacher = _program_teacher(config, network)
        return _by_name(config, teacher, network.class_names, class_names, weights)
    given = config.teacher.mean or config.augment.mean, config.teacher.std or config.augment.std
    warn_of_another_normalisation(network, *given, "config.teacher")
    teacher = freeze(network.model, network.variables, network.description, compute_dtype=compute_dtype(config))
    teacher = dataclasses.replace(teacher, networks=() if random else (network.identity(),))
    return _by_name(config, teacher, network.class_names, class_names, weights)


def _program_teacher(config: ConfigDict, network: Network) -> Teacher:
    """Returns a program as a teacher, with images normalised as in its preprocessing.json."""
    if config.teacher.mean or config.teacher.std:
        raise ConfigError(
            f"config.teacher.mean and config.teacher.std cannot be set for the program {network.where}: its preprocessing.json "
            "has them"
        )
    assert network.mean is not None and network.std is not None
    change = renormalisation((config.augment.mean, config.augment.std), (network.mean, network.std))
    model = network.model if change is None else Ensemble((network.model,), None, *change)
    return Teacher(model, {}, f"the program {network.where}", networks=(network.identity(),))


def _by_name(
    config: ConfigDict, teacher: Teacher, own_names: Sequence[str] | None, class_names: tuple[str, ...], where: str
) -> Teacher:
    """Reorders the teacher's classes to the student's `class_names`; does nothing if the teacher has no class names.

    Raises ConfigError if the names differ: labels are positions, so the teacher would teach the wrong classes.
    """
    unused = not needs_logits(config)  # only the teacher's features are
    if unused or config.teacher.classes is not None or not own_names or tuple(own_names) == class_names:
        return teacher
    numbers = order_of(class_names, own_names)
    if numbers is None:
        raise ConfigError(
            f"the teacher in {where} has other classes than the student ({difference(own_names, class_names)}): use one trained "
            "on the same classes, or map the classes with config.teacher.classes"
        )
    unnamed = range(len(numbers), teacher.model.num_classes)
    return dataclasses.replace(
        teacher,
        model=Ensemble((teacher.model,), (*numbers, *unnamed)),
        variables=joined_variables([teacher.variables]),
        description=f"{teacher.description}; classes matched by name",
    )


def _joined(config: ConfigDict, members: list[Teacher]) -> Teacher:
    """Joins all members into one teacher; returns a single one unchanged if it takes the student's images and classes."""
    teacher, augment = config.teacher, config.augment
    change = renormalisation((augment.mean, augment.std), (teacher.mean or augment.mean, teacher.std or augment.std))
    selects = teacher.classes is not None and needs_logits(config)
    classes = tuple(int(number) for number in teacher.classes) if selects else None
    if len(members) == 1 and change is None and classes is None:
        return members[0]
    model = Ensemble(tuple(member.model for member in members), classes, *(change or (None, None)))
    description = " and ".join(member.description for member in members)
    if len(members) > 1:
        description += "; the mean of their probabilities"
    if change is not None:
        description += (
            f"; images normalised by {tuple(teacher.mean or augment.mean)}, {tuple(teacher.std or augment.std)}"
        )
    if classes is not None:
        description += f"; {len(classes)} of its classes"
    return Teacher(
        model,
        joined_variables([member.variables for member in members]),
        description,
        sum(member.num_parameters for member in members),
        tuple(network for member in members for network in member.networks),
    )


def _create(config: ConfigDict, name: str, num_classes: int, image_size: int) -> nn.Module:
    check_overrides("teacher", name, config.teacher.overrides)
    try:
        model = create_model(name, num_classes, image_size, **config.teacher.overrides)
    except ValueError as error:
        raise ConfigError(f"config.teacher: {error}") from error
    check_outputs(model, image_size)
    return model


def _assumed_classes(config: ConfigDict, weights: str, num_classes: int) -> int:
    """Number of classes to assume when the weights do not specify it: no more than needed."""
    if config.teacher.classes is None:
        return num_classes
    return IMAGENET_CLASSES if weights == "pretrained" else max(config.teacher.classes) + 1


def _check_number_of_classes(config: ConfigDict, num_classes: int) -> None:
    classes = config.teacher.classes
    if classes is None or not needs_logits(config):
        return
    if len(classes) != num_classes:
        raise ConfigError(
            f"config.teacher.classes names {len(classes)} of the teacher's classes, the student has {num_classes}: "
            "give one for each"
        )
    if min(classes) < 0:
        raise ConfigError(f"config.teacher.classes: {min(classes)} is not a class; classes are counted from 0")


def _check_classes(config: ConfigDict, classes: int, num_classes: int, where: str) -> None:
    """Raises ConfigError if a teacher with `classes` classes cannot teach the student's `num_classes`."""
    wanted = config.teacher.classes
    if not needs_logits(config):  # only the teacher's features are used
        return
    if wanted is None and classes != num_classes:
        raise ConfigError(
            f"the teacher in {where} has {classes} classes, the student {num_classes}: use an equal number, or map the classes "
            "with config.teacher.classes"
        )
    if wanted is not None and max(wanted) >= classes:
        raise ConfigError(
            f"config.teacher.classes has class {max(wanted)}, but the teacher in {where} has {classes}, counted from 0"
        )


def _check_image_size(model: nn.Module, where: str, image_size: int) -> None:
    own = getattr(model, "image_size", image_size)  # a convnet takes any size
    if own != image_size:
        advice = _fine_tune_first(where, image_size)
        if kind_of(where) == "program":
            advice = f"export it for {image_size} pixels"
        raise ConfigError(
            f"the teacher in {where} takes images of {own} pixels, the student's have {image_size}: {advice}"
        )


def _fine_tune_first(weights: str, image_size: int) -> str:
    return (
        f"fine-tune it at that size first (a run with --config.model.weights={weights} "
        f"--config.image_size={image_size}; docs/finetuning.md)"
    )
