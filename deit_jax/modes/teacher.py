"""The frozen teacher of a configuration, wherever its weights come from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from deit_jax.config import ConfigError
from deit_jax.data.registry import open_source
from deit_jax.models import create_model, native_image_size
from deit_jax.reporting import console
from deit_jax.training.checkpointing import load_variables
from deit_jax.training.plan import compute_dtype
from deit_jax.training.program import Teacher, build_model, build_recorded_model, freeze
from deit_jax.training.record import read_config
from deit_jax.training.state import Variables
from deit_jax.weights import load_pretrained, load_weights
from deit_jax.weights.files import is_weights


def load_teacher(config: ConfigDict, workdir: Path) -> Teacher | None:
    """The frozen teacher of a validated configuration; None if it distils from none.

    Its weights are those trained in another workdir or in `workdir`/teacher, a file of another framework, or published ones.

    Raises ConfigError if it does not fit the student (another name than configured, other classes, another image size),
    CheckpointError if its workdir holds no trained weights, WeightsError if a file cannot be had, read or does not fit.
    """
    if config.distillation.kind == "none":
        return None
    num_classes = config.num_classes or len(open_source(config.data, "train").class_names)
    image_size = config.image_size or native_image_size(config.model.name)
    weights = config.teacher.weights
    if config.teacher.recipe is not None:
        return _trained_teacher(config, workdir / "teacher", num_classes, image_size)
    if weights not in ("random", "pretrained") and not is_weights(Path(weights)):
        return _trained_teacher(config, Path(weights), num_classes, image_size)

    name = config.teacher.name
    model = _create(config, num_classes, image_size)
    if weights == "random":
        variables = jax.jit(model.init)(jax.random.key(config.seed), jnp.zeros((1, image_size, image_size, 3)))
        console.warn(f"the teacher {name} has RANDOM weights (config.teacher.weights='random'): it teaches nothing")
        description = f"{name}, RANDOM weights"
    elif weights == "pretrained":
        if num_classes != 1000:
            raise ConfigError(
                f"config.teacher.weights=pretrained are of ImageNet's 1000 classes, the student has {num_classes}"
            )
        model, variables = load_pretrained(name, num_classes, image_size, **config.teacher.overrides)
        description = f"{name}, published weights"
    else:
        variables = load_weights(weights, model, which="ema" if config.teacher.variables == "ema" else None)
        description = f"{name}, weights of {weights}"
    return freeze(model, variables, description, compute_dtype=compute_dtype(config))


def abstract_teacher(config: ConfigDict, num_classes: int, image_size: int, platform: str) -> Teacher | None:
    """The frozen teacher in shapes and types alone, as the train step takes it on `platform`; it needs no weights.

    None if the configuration distils from none. Raises ConfigError for a teacher that cannot be built.
    """
    if config.distillation.kind == "none":
        return None
    if config.teacher.recipe is not None:
        shape = {"num_classes": num_classes, "image_size": image_size, "compute_dtype": "float32"}
        model = build_model(config.teacher.recipe, **shape)
    elif (Path(config.teacher.weights or ".") / "config.json").is_file():
        model = build_recorded_model(read_config(Path(config.teacher.weights)))
    else:
        model = _create(config, num_classes, image_size)
    frozen = []  # what is no array does not come out of eval_shape

    def variables() -> Variables:
        initial = model.init(jax.random.key(0), jnp.zeros((1, image_size, image_size, 3)))
        frozen.append(freeze(model, initial, "", compute_dtype=compute_dtype(config, platform)))
        return frozen[0].variables

    shapes = jax.eval_shape(variables)
    return dataclasses.replace(frozen[0], variables=shapes, description=f"{config.teacher.name}, shapes alone")


def _create(config: ConfigDict, num_classes: int, image_size: int) -> nn.Module:
    try:
        return create_model(config.teacher.name, num_classes, image_size, **config.teacher.overrides)
    except ValueError as error:
        raise ConfigError(f"config.teacher: {error}") from error


def _trained_teacher(config: ConfigDict, folder: Path, num_classes: int, image_size: int) -> Teacher:
    """A teacher that this project trained in `folder`; it knows its own fields."""
    record = read_config(folder)
    name = record["config"]["model"]["name"]
    if name != config.teacher.name:
        raise ConfigError(f"config.teacher.name={config.teacher.name!r}, but {folder} holds {name!r}")
    classes = record["resolved"]["num_classes"]
    if classes != num_classes:
        raise ConfigError(
            f"the teacher in {folder} has {classes} classes, the student {num_classes}: they must be equal"
        )
    model = build_recorded_model(record)
    if getattr(model, "image_size", image_size) != image_size:  # a convnet takes any size
        raise ConfigError(
            f"the teacher in {folder} is made for {model.image_size} pixels, the student's images have {image_size}"
        )
    variables, step = load_variables(folder, config.teacher.variables)
    description = f"{name}, {config.teacher.variables} weights of {folder} after step {step}"
    return freeze(model, variables, description, compute_dtype=compute_dtype(config))
