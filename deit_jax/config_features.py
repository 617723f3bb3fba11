"""The section `features` of a configuration: which features of the student are compared with which of the teacher."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from deit_jax.config import ConfigError
from deit_jax.config_model import module_options, named_teachers
from deit_jax.models.protocol import feature_names
from deit_jax.models.registry import create_model, native_image_size
from deit_jax.weights.files import is_workdir, kind_of

FEATURE_LOSSES = ("mse", "cosine", "local_guidance")
_PAIR = re.compile(r"([\w.]+):([\w.]+)")


class Pair(NamedTuple):
    """Names of two features, one of the student and one of the teacher."""

    student: str
    teacher: str


class Giver(NamedTuple):
    """A model that gives features: "student" or "teacher", its name for users, and the names of its features."""

    role: str
    model: str
    names: Sequence[str]

    def check(self, name: str, known: bool) -> None:
        """Raises ConfigError unless the feature `name` is `known`."""
        if known:
            return
        where = f"config.features.pairs: the {self.role} {self.model}"
        if not self.names:
            raise ConfigError(f"{where} gives no features (docs/extending.md)")
        raise ConfigError(f"{where} has no feature {name!r}; it has {_listed(self.names)}")


def feature_pairs(config: ConfigDict) -> tuple[Pair, ...]:
    """Returns the pairs as configured. Raises ConfigError for a text that is not a pair, and for a pair that occurs twice."""
    pairs: list[Pair] = []
    for text in config.features.pairs:
        match = _PAIR.fullmatch(text)
        if match is None:
            raise ConfigError(f"config.features.pairs: {text!r} is not STUDENT:TEACHER, e.g. patch_4:s2")
        pairs.append(Pair(match[1], match[2]))
        if pairs.count(pairs[-1]) > 1:
            raise ConfigError(f"config.features.pairs has {text} twice: keep one of them")
    return tuple(pairs)


def feature_weights(config: ConfigDict) -> dict[str, float]:
    """Returns the weights above 0 of the feature losses, by name."""
    return {name: float(config.features[name]) for name in FEATURE_LOSSES if config.features[name] > 0}


def described_features(config: ConfigDict) -> str:
    """Describes pairs and weights, e.g. "patch_4 <- s2; mse 1"; "" without pairs."""
    if not config.features.pairs:
        return ""
    pairs = ", ".join(f"{pair.student} <- {pair.teacher}" for pair in feature_pairs(config))
    return f"{pairs}; " + ", ".join(f"{name} {weight:g}" for name, weight in feature_weights(config).items())


def resolved_pairs(pairs: Sequence[Pair], student: Giver, teacher: Giver) -> tuple[Pair, ...]:
    """Returns the pairs with `block_N` of a teacher as the name of its tokens of the student's kind.

    The teacher's class token takes the place of a distillation token that it does not have. Raises ConfigError for a feature that
    a model does not have.
    """
    resolved = []
    for pair in pairs:
        student.check(pair.student, pair.student in student.names)
        candidates = [pair.teacher]
        if pair.teacher.startswith("block_"):
            number = pair.teacher.removeprefix("block_")
            candidates += [f"{pair.student.partition('_')[0]}_{number}", f"class_{number}"]
        known = [name for name in candidates if name in teacher.names]
        teacher.check(pair.teacher, bool(known))
        resolved.append(Pair(pair.student, known[0]))
    return tuple(resolved)


def check_features(config: ConfigDict) -> None:
    """Raises ConfigError for a section `features` that contradicts itself, the models or other fields.

    config: its other sections are valid. The features of a teacher from a workdir are checked when it is loaded.
    """
    pairs, weights, teacher = feature_pairs(config), feature_weights(config), config.teacher
    if not pairs:
        for name, weight in weights.items():
            raise ConfigError(
                f"config.features.{name}={weight:g}, but config.features.pairs is empty: set it, e.g. patch_4:s2"
            )
        return
    if not weights:
        fields = " or ".join(f"config.features.{name}" for name in FEATURE_LOSSES)
        raise ConfigError(f"config.features.pairs is set, but every weight is 0: set {fields}")
    for field in ("answers", "record"):
        if teacher[field]:
            refuse_recorded_features(config, f"config.teacher.{field}")
    student = Giver("student", config.model.name, _features("model", config.model.name, module_options(config), config))
    for pair in pairs:
        student.check(pair.student, pair.student in student.names)
        if config.model.patch_keep_rate < 1 and pair.student.startswith("patch_"):
            raise ConfigError(
                f"config.features.pairs: {pair.student} is a map of all patch tokens, and config.model.patch_keep_rate="
                f"{config.model.patch_keep_rate:g} drops some: compare class_N or final, or set the rate to 1"
            )
    if teacher.recipe is not None:
        name, recipe = teacher.recipe.model.name, teacher.recipe
        known = _features("teacher.recipe.model", name, module_options(recipe), recipe)
        resolved_pairs(pairs, student, Giver("teacher", name, known))
        return
    named, *others = named_teachers(config)
    if others:
        raise ConfigError(
            f"config.features.pairs: features of several teachers ({teacher.name}) cannot be compared: give one teacher"
        )
    if kind_of(named.weights) == "program":
        raise ConfigError(
            f"config.features.pairs: the program {named.weights} gives only logits, no features: use a model of this "
            "package or a registered one"
        )
    if not is_workdir(named.weights):
        known = _features("teacher", named.name, named.overrides, config)
        resolved_pairs(pairs, student, Giver("teacher", named.name, known))


def refuse_recorded_features(config: ConfigDict, what: str) -> None:
    """Raises ConfigError if a configuration with features records or reads a teacher's answers. what: the field or flag."""
    if config.features.pairs:
        raise ConfigError(
            f"config.features.pairs does not work with {what}, because only logits are recorded: train with a live teacher, "
            "or leave config.features.pairs empty"
        )


def _features(section: str, name: str, fields: Mapping[str, Any], config: ConfigDict) -> tuple[str, ...]:
    """Returns the features of the model `name` at the image size of `config`. section: where it is configured."""
    size = config.image_size or native_image_size(config.model.name)
    try:
        return feature_names(create_model(name, image_size=size, **fields))
    except ValueError as error:
        raise ConfigError(f"config.{section}: {error}") from error


def _listed(names: Sequence[str]) -> str:
    """Lists names, numbered ones by their range: "patch_1 to patch_12, final"."""
    shown = []
    for kind, group in itertools.groupby(names, lambda name: re.sub(r"\d+$", "", name)):
        same = list(group)
        shown.append(f"{same[0]} to {same[-1]}" if len(same) > 1 and kind != same[0] else ", ".join(same))
    return ", ".join(shown)
