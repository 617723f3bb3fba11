"""Loads the frozen teacher, or the ensemble of teachers, of a configuration."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.config import ConfigError, asks_teacher, listed_names, needs_logits
from deit_jax.config_model import NamedTeacher, check_overrides, named_teachers
from deit_jax.data.classes import difference, order_of
from deit_jax.data.registry import open_source
from deit_jax.models import create_model, native_image_size
from deit_jax.models.ensemble import Ensemble, joined_variables, renormalisation
from deit_jax.models.protocol import check_outputs, initial_variables
from deit_jax.network import Network, load_network, program_network, warn_of_another_normalisation
from deit_jax.network_sources import IMAGENET_CLASSES, Wanted
from deit_jax.storage.workdir import Workdir, WorkdirLike
from deit_jax.training.plan import compute_dtype
from deit_jax.training.program import build_model, build_recorded_model
from deit_jax.training.record import read_config
from deit_jax.training.state import Variables
from deit_jax.training.teacher import Teacher, freeze
from deit_jax.weights.files import is_workdir, kind_of


def load_teacher(
    config: ConfigDict, workdir: WorkdirLike, class_names: tuple[str, ...] | None = None
) -> Teacher | None:
    """Loads the frozen teacher of a validated configuration; returns None if there is none, or recorded answers instead.

    The weights are those trained in another workdir or in `workdir`/teacher, a file of another framework, or published ones.
    Several teachers, or one with another normalisation or other classes than the student's, become an `Ensemble`. Each of several
    may have its own (config.teacher.each).

    class_names: of the student's training images; None: they are opened to find out.

    Raises ConfigError if it does not fit the student (another model, other classes, another image size), CheckpointError if its
    workdir has no trained weights, WeightsError if a file cannot be downloaded or read, or does not fit.
    """
    if not asks_teacher(config):
        return None
    class_names = class_names or open_source(config.data, "train").class_names
    num_classes = config.num_classes or len(class_names)
    image_size = config.image_size or native_image_size(config.model.name)
    teachers = _named(config, num_classes, str(Workdir.at(workdir).teacher))
    members = [
        _load_one(config, number, named, num_classes, class_names, image_size) for number, named in enumerate(teachers)
    ]
    return dataclasses.replace(_joined(config, teachers, members), fused=config.teacher.fused)


def abstract_teacher(config: ConfigDict, num_classes: int, image_size: int, platform: str) -> Teacher | None:
    """Returns the frozen teacher as shapes and dtypes, as the train step takes it on `platform`, without weights.

    None if the configuration does not distil, or has recorded answers. Raises ConfigError for a teacher that cannot be built.
    """
    if not asks_teacher(config):
        return None
    teachers = _named(config, num_classes, "")
    models: list[nn.Module | Teacher]
    if config.teacher.recipe is not None:
        recipe = config.teacher.recipe
        models = [build_model(recipe, num_classes=num_classes, image_size=image_size, compute_dtype="float32")]
    else:
        models = [
            _abstract_program(config, named, num_classes, image_size, platform)
            if kind_of(named.weights) == "program"
            else _abstract_model(config, named, num_classes, image_size)
            for named in teachers
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
        frozen.append(_joined(config, teachers, members))
        return frozen[0].variables

    shapes = jax.eval_shape(variables)
    description = f"{config.teacher.name}, shapes only"
    return dataclasses.replace(frozen[0], variables=shapes, description=description, fused=config.teacher.fused)


def _named(config: ConfigDict, num_classes: int, trained_here: str) -> list[NamedTeacher]:
    """Returns the teachers after checking their numbers of classes; trained_here: the workdir of the recipe's teacher."""
    teachers = named_teachers(config)
    for number, named in enumerate(teachers, 1):
        own = config.teacher.each.get(str(number), {})
        field = f"config.teacher.each.{number}.classes" if "classes" in own else "config.teacher.classes"
        if needs_logits(config):
            _check_number_of_classes(named.classes, num_classes, field)
    if config.teacher.recipe is not None:
        return [dataclasses.replace(named, weights=trained_here) for named in teachers]
    return teachers


def _abstract_program(
    config: ConfigDict, named: NamedTeacher, num_classes: int, image_size: int, platform: str
) -> Teacher:
    weights = named.weights
    network = program_network(weights, platform)
    _check_image_size(network.model, weights, image_size)
    _check_classes(config, named, network.model.num_classes, num_classes)
    return _program_teacher(config, named, network)


def _abstract_model(config: ConfigDict, named: NamedTeacher, num_classes: int, image_size: int) -> nn.Module:
    weights = named.weights
    if is_workdir(weights) and Workdir.at(weights).is_there():  # else the shapes follow from the name
        model = build_recorded_model(read_config(weights))
        _check_image_size(model, weights, image_size)
        if named.classes is not None:
            _check_classes(config, named, model.num_classes, num_classes)
        return model
    return _create(named, _assumed_classes(named, num_classes), image_size)


def _load_one(
    config: ConfigDict,
    number: int,
    named: NamedTeacher,
    num_classes: int,
    class_names: tuple[str, ...],
    image_size: int,
) -> Teacher:
    """Loads teacher `number` (from 0) by its fields, with its classes in the student's order if both have names."""
    name, weights = named.name, named.weights
    random = weights == "random"

    def check(model: nn.Module) -> None:
        _check_classes(config, named, model.num_classes, num_classes)
        _check_image_size(model, _place(weights), image_size)

    wanted = Wanted(
        name,
        functools.partial(_create, named),
        image_size,
        keeps_size=True,  # the teacher sees the student's images
        num_classes=_assumed_classes(named, num_classes) if random else None,
        class_names=class_names,
        section="config.teacher",
        seed=config.seed,
        position=number,
    )
    network = load_network(weights, wanted, which=named.variables, check=check)
    if random:
        console.warn(f"the teacher {name} has RANDOM weights (config.teacher.weights='random'): it teaches nothing")
    if network.resized:
        raise ConfigError(
            f"the teacher {name}, {network.where} was trained at another image size than the student's {image_size} pixels (its "
            f"position embedding would be resized from {network.resized}): {_fine_tune_first(weights, image_size)}"
        )
    if network.program:
        teacher = _program_teacher(config, named, network)
        return _by_name(config, named, teacher, network.class_names, class_names)
    alone = len(listed_names(config.teacher.name)) == 1
    fields = "config.teacher" if alone else f"config.teacher.each.{number + 1}"
    warn_of_another_normalisation(network, *_normalisation(config, named), fields)
    teacher = freeze(network.model, network.variables, network.description, compute_dtype=compute_dtype(config))
    teacher = dataclasses.replace(teacher, networks=() if random else (network.identity(),))
    return _by_name(config, named, teacher, network.class_names, class_names)


def _place(weights: str) -> str:
    return "the published weights" if weights == "pretrained" else weights


def _normalisation(config: ConfigDict, named: NamedTeacher) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and std of the images that a teacher takes."""
    return tuple(named.mean or config.augment.mean), tuple(named.std or config.augment.std)


def _program_teacher(config: ConfigDict, named: NamedTeacher, network: Network) -> Teacher:
    """Returns a program as a teacher, with images normalised as in its preprocessing.json."""
    if named.mean or named.std:
        raise ConfigError(
            f"config.teacher.mean and config.teacher.std cannot be set for the program {network.where}: its preprocessing.json "
            "has them"
        )
    assert network.mean is not None and network.std is not None
    change = renormalisation((config.augment.mean, config.augment.std), (network.mean, network.std))
    model = network.model if change is None else Ensemble((network.model,), None, *change)
    return Teacher(model, {}, f"the program {network.where}", networks=(network.identity(),))


def _by_name(
    config: ConfigDict,
    named: NamedTeacher,
    teacher: Teacher,
    own_names: Sequence[str] | None,
    class_names: tuple[str, ...],
) -> Teacher:
    """Reorders the teacher's classes to the student's `class_names`; does nothing if the teacher has no class names.

    Raises ConfigError if the names differ: labels are positions, so the teacher would teach the wrong classes.
    """
    unused = not needs_logits(config)  # only the teacher's features are
    if unused or named.classes is not None or not own_names or tuple(own_names) == class_names:
        return teacher
    numbers = order_of(class_names, own_names)
    if numbers is None:
        raise ConfigError(
            f"the teacher in {named.weights} has other classes than the student ({difference(own_names, class_names)}): use one "
            "trained on the same classes, or map the classes with config.teacher.classes"
        )
    unnamed = range(len(numbers), teacher.model.num_classes)
    return dataclasses.replace(
        teacher,
        model=Ensemble((teacher.model,), (*numbers, *unnamed)),
        variables=joined_variables([teacher.variables]),
        description=f"{teacher.description}; classes matched by name",
    )


# ((mean, std), classes): the images that a teacher takes, and its number for each class of the student
_Adaptation = tuple[tuple[tuple[float, ...], tuple[float, ...]], tuple[int, ...] | None]


def _joined(config: ConfigDict, teachers: list[NamedTeacher], members: list[Teacher]) -> Teacher:
    """Joins all members into one teacher; returns a single one unchanged if it takes the student's images and classes."""
    student = tuple(config.augment.mean), tuple(config.augment.std)
    adaptations: list[_Adaptation] = [
        (_normalisation(config, each), tuple(map(int, each.classes)) if each.classes and needs_logits(config) else None)
        for each in teachers
    ]
    if len(set(adaptations)) == 1:
        return _ensemble(members, student, adaptations[0])
    adapted = [_ensemble([member], student, own) for member, own in zip(members, adaptations, strict=True)]
    return _ensemble(adapted, student, (student, None))


def _ensemble(members: list[Teacher], student: tuple[Sequence[float], Sequence[float]], wanted: _Adaptation) -> Teacher:
    """Returns teachers as one that takes images normalised for the student, by (mean, std), and gives the student's classes."""
    normalisation, classes = wanted
    change = renormalisation(student, normalisation)
    if len(members) == 1 and change is None and classes is None:
        return members[0]
    description = " and ".join(member.description for member in members)
    if len(members) > 1:
        description += "; the mean of their probabilities"
    if change is not None:
        description += f"; images normalised by {normalisation[0]}, {normalisation[1]}"
    if classes is not None:
        description += f"; {len(classes)} of its classes"
    return Teacher(
        Ensemble(tuple(member.model for member in members), classes, *(change or (None, None))),
        joined_variables([member.variables for member in members]),
        description,
        sum(member.num_parameters for member in members),
        tuple(network for member in members for network in member.networks),
    )


def _create(named: NamedTeacher, num_classes: int, image_size: int) -> nn.Module:
    check_overrides("teacher", named.name, named.overrides)
    try:
        model = create_model(named.name, num_classes, image_size, **named.overrides)
    except ValueError as error:
        raise ConfigError(f"config.teacher: {error}") from error
    check_outputs(model, image_size)
    return model


def _assumed_classes(named: NamedTeacher, num_classes: int) -> int:
    """Number of classes to assume when the weights do not specify it: no more than needed."""
    if named.classes is None:
        return num_classes
    return IMAGENET_CLASSES if named.weights == "pretrained" else max(named.classes) + 1


def _check_number_of_classes(classes: Sequence[int] | None, num_classes: int, name: str) -> None:
    if classes is None:
        return
    if len(classes) != num_classes:
        raise ConfigError(
            f"{name} names {len(classes)} of the teacher's classes, the student has {num_classes}: give one for each"
        )
    if min(classes) < 0:
        raise ConfigError(f"{name}: {min(classes)} is not a class; classes are counted from 0")


def _check_classes(config: ConfigDict, named: NamedTeacher, classes: int, num_classes: int) -> None:
    """Raises ConfigError if a teacher with `classes` classes cannot teach the student's `num_classes`."""
    wanted, where = named.classes, _place(named.weights)
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
