"""All arguments of the paper's configurations, grouped by program."""

import copy
import importlib
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from deit_jax.config import MUST_BE_GIVEN
from deit_jax.modes.compile import training_data
from deit_jax.modes.teacher import abstract_teacher
from deit_jax.paper.commands import FILES
from deit_jax.paper.rows import rows_of
from deit_jax.parallel.mesh import make_mesh
from deit_jax.recipes.imagenet import run_locally
from deit_jax.training.plan import resolve
from deit_jax.training.program import Program, build_program
from tests.tiny import STUDENT, TEACHER

CONFIGS = {file: importlib.import_module(f"configs.{file}") for file in FILES}

# Arguments in addition to the paper's rows.
BEYOND_THE_PAPER = {
    "deit": [
        "tiny,soft",
        "small,soft",
        "base,soft",
        "base,160px",
        "small,320px",
        "tiny,384px,500",
        "base,800,distilled",
    ],
    "teacher": ["regnety_002"],
    "distillation": ["token_soft,tiny", "hard,small,800", "soft,tiny,384px", "token,small,deit_base,384px"],
    "finetune": ["224px", "384px,sgd", "384px,distilled,train_mode", "small,384px", "tiny,320px,distilled"],
    "transfer": [
        "cifar100,tiny",
        "cars,small,distilled,384px",
        "cifar10,tiny,distilled,class_head",
        "inat18,small,distilled,teacher",
        "cars,regnety_160,384px",
    ],
    "ablation": ["no_rand_augment_jitter", "no_rand_augment_jitter,384px"],
    "search": ["small,3e-4,0.04"],
}
ARGUMENTS = [
    f"{file}:{argument}"
    for file in CONFIGS
    for argument in dict.fromkeys([*(row.argument for row in rows_of(file)), *BEYOND_THE_PAPER[file]])
]

# A RegNetY with all four stages.
CONVNET = dict(w0=8, wa=16.0, wm=1.5, depth=4, group_width=8, stem_width=8, stem_stride=2)


def get_config(name: str) -> ConfigDict:
    """Returns the configuration of "file:argument"."""
    file, argument = name.split(":")
    return CONFIGS[file].get_config(argument)


def without_user(config: ConfigDict) -> ConfigDict:
    """Returns a copy with the weights that a user would set."""
    config = copy.deepcopy(config)
    if config.model.weights == MUST_BE_GIVEN:
        config.model.weights = "runs/trained"
    if config.distillation.kind in ("soft", "hard"):
        config.teacher.weights = "random"
    return config


def quick_to_trace(config: ConfigDict) -> ConfigDict:
    """Returns a copy with equivalent networks that trace faster: one block for twelve, and convolution groups not packed."""
    config = without_user(config)
    config.model.scan_blocks = config.model.name.startswith("deit")
    with config.unlocked():
        for network in (config.model, config.teacher):
            if network.name.startswith("regnety"):
                network.overrides.grouped_conv = "native"
    return config


def shrink(config: ConfigDict) -> ConfigDict:
    """Returns a copy that runs in seconds: the same recipe and kinds of modules, narrow and shallow, on 28 pixels.

    Without RandAugment, whose fifteen operations take longest to compile and are tested in tests/augment.
    """
    config = copy.deepcopy(config)
    run_locally(config)
    config.image_size, config.num_classes = 28, 10
    config.augment.rand_augment = ""
    config.parallel.xla_options = "xla_backend_optimization_level=0"
    config.train.epochs = min(config.train.epochs, 300)
    config.log.tensorboard = False
    config.evaluation.crop_ratio = 1.0
    config.schedule.warmup_epochs, config.schedule.warmup_learning_rate = (
        0.0,
        1e-3,
    )  # so that the first steps have an effect
    for network, small in ((config.model, CONVNET), (config.teacher, TEACHER)):
        convnet = network.name.startswith("regnety")
        distilled = "_distilled" if "_distilled_" in network.name else ""
        network.name = "regnety_002" if convnet else f"deit_tiny{distilled}_patch16_224"
        with config.unlocked():
            network.overrides = dict(small if convnet else STUDENT)
    return config


def program_key(config: ConfigDict, *, sizes: bool = True) -> str:
    """What gives the train step its form: equal for two configurations whose programs differ in constants, and in the heads'
    width, at most; without `sizes` also in pixels, rows, the scale of the networks, and the augmentation.
    """
    taught = config.distillation.kind in ("soft", "hard")
    form: dict[str, Any] = {
        "model": [config.model.name, config.model.overrides.to_dict(), config.model.scan_blocks],
        "sizes": [config.image_size, config.train.batch_size, config.train.accumulation_steps],
        "dropping": [config.model.drop_path_rate > 0, config.model.dropout_rate > 0, config.train.train_mode],
        "distillation": [config.distillation[name] for name in ("kind", "kl", "kl_mean")],
        "teacher": [config.teacher[name] for name in ("name", "overrides", "mean", "std", "classes")] if taught else None,
        "augment": augmentation_key(config),
        "optimizer": [config.optimizer[name] for name in ("name", "trainable", "no_decay")],
        "rates": [config.schedule.kind, config.schedule.per_step, config.train.clip_norm is None, config.ema.decay > 0],
    }  # fmt: skip
    if not sizes:
        del form["sizes"], form["augment"]
        form["model"][0] = kind_of_model(config.model.name)
        if taught:
            form["teacher"][0] = kind_of_model(config.teacher.name)
    return json.dumps(form, sort_keys=True, default=str)


def augmentation_key(config: ConfigDict) -> str:
    """What gives the augmentation its form."""
    form = {name: value > 0 if isinstance(value, float) else value for name, value in config.augment.items()}
    return json.dumps(form, sort_keys=True, default=str)


def kind_of_model(name: str) -> str:
    """Returns a model's name without its size."""
    return re.sub(r"_(tiny|small|base)|_?\d+", "", name)


class Tracer:
    """Traces train steps with abstract values, each distinct program once."""

    def __init__(self):
        self.mesh = make_mesh(jax.devices()[:1])
        self._steps: dict[str, Any] = {}
        self._teachers: dict[str, Any] = {}

    def trace(self, config: ConfigDict) -> tuple[Program, Any, dict[str, Any]]:
        """Returns the program of a configuration, and the shapes of its step's new state and metrics."""
        key = program_key(config)
        if key not in self._steps:
            self._steps[key] = self._trace(config)
        return self._steps[key]

    def _trace(self, config):
        num_images, classes = training_data(config)
        plan = resolve(config, num_images=num_images, data_classes=classes)
        teacher = self._teacher(config, plan)
        program = build_program(config, plan, self.mesh)
        rows, pixels = plan.order.batch_size, plan.image_size
        batch = {
            "image": jax.ShapeDtypeStruct((rows, pixels, pixels, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
        }
        frozen = None if teacher is None else teacher.for_step(self.mesh)
        return program, *jax.eval_shape(program.train_step, program.abstract_state, frozen, batch)

    def _teacher(self, config, plan):
        key = f"{config.distillation.kind in ('soft', 'hard')} {config.teacher} {plan.num_classes} {plan.image_size}"
        if key not in self._teachers:
            self._teachers[key] = abstract_teacher(config, plan.num_classes, plan.image_size, "cpu")
        return self._teachers[key]
