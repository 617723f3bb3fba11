"""--mode=train: the teacher first if the configuration trains one, then the model."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from deit_jax.config import ConfigError, validate
from deit_jax.data.registry import open_source
from deit_jax.models import create_model, native_image_size
from deit_jax.parallel.mesh import make_mesh
from deit_jax.reporting import console
from deit_jax.training.checkpointing import load_variables
from deit_jax.training.loop import Results
from deit_jax.training.loop import train as run_training
from deit_jax.training.plan import resolve
from deit_jax.training.program import Teacher, build_model, build_program
from deit_jax.training.record import read_config


def train(config: ConfigDict, workdir: Path) -> Results:
    """Train what `config` describes in `workdir`, or go on where an earlier call stopped.

    With `config.teacher.recipe` the teacher is trained first, in `workdir`/teacher. Returns the content of `results.json`. Raises
    ConfigError, DataError or CheckpointError, each with one clear line.
    """
    validate(config)
    if config.teacher.recipe is not None:
        refuse_what_cannot_be_built(config)  # rather than after the teacher's training
        console.say("first the teacher, then its student")
        train(config.teacher.recipe, workdir / "teacher")
    return run_training(config, workdir, load_teacher(config, workdir))


def refuse_what_cannot_be_built(config: ConfigDict) -> None:
    """Build the student's program without computing anything; raises ConfigError or DataError as training would."""
    source = open_source(config.data, "train")
    plan = resolve(config, num_images=len(source), data_classes=len(source.class_names))
    build_program(config, plan, make_mesh())


def load_teacher(config: ConfigDict, workdir: Path) -> Teacher | None:
    """The frozen teacher of a validated configuration; None if it distils from none.

    Raises ConfigError if it does not fit the student (another name than configured, other classes, another image size), or
    CheckpointError if its workdir holds no trained weights.
    """
    if config.distillation.kind == "none":
        return None
    num_classes = config.num_classes or len(open_source(config.data, "train").class_names)
    image_size = config.image_size or native_image_size(config.model.name)
    if config.teacher.weights == "random":
        return _random_teacher(config, num_classes, image_size)
    folder = Path(config.teacher.weights) if config.teacher.recipe is None else workdir / "teacher"
    record = read_config(folder)
    trained = ConfigDict(record["config"])
    if trained.model.name != config.teacher.name:
        raise ConfigError(f"config.teacher.name={config.teacher.name!r}, but {folder} holds {trained.model.name!r}")
    classes, names = record["resolved"]["num_classes"], ("num_classes", "image_size", "compute_dtype")
    if classes != num_classes:
        raise ConfigError(
            f"the teacher in {folder} has {classes} classes, the student {num_classes}: they must be equal"
        )
    model = build_model(trained, **{name: record["resolved"][name] for name in names})
    if getattr(model, "image_size", image_size) != image_size:  # a convnet takes any size
        raise ConfigError(
            f"the teacher in {folder} is made for {model.image_size} pixels, the student's images have {image_size}"
        )
    variables, step = load_variables(folder, config.teacher.variables)
    return Teacher(
        model, variables, f"{trained.model.name}, {config.teacher.variables} weights of {folder} after step {step}"
    )


def _random_teacher(config: ConfigDict, num_classes: int, image_size: int) -> Teacher:
    name = config.teacher.name
    try:
        model = create_model(name, num_classes, image_size, **config.teacher.overrides)
    except ValueError as error:
        raise ConfigError(f"config.teacher: {error}") from error
    image = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(config.seed), image)
    console.warn(f"the teacher {name} has RANDOM weights (config.teacher.weights='random'): it teaches nothing")
    return Teacher(model, {"batch_stats": {}, **variables}, f"{name}, RANDOM weights")
