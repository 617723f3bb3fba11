"""--mode=train: trains the teacher first, if the configuration has a recipe for it, then the model."""

from __future__ import annotations

from pathlib import Path

import jax
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.cache_folder import shared_cache_folder
from deit_jax.config import MUST_BE_GIVEN, ConfigError, needs_logits
from deit_jax.config_check import validate
from deit_jax.data.classes import difference, order_of
from deit_jax.data.registry import open_source
from deit_jax.modes.initial import load_initial
from deit_jax.modes.report import report_of_finished_run
from deit_jax.modes.teacher import abstract_teacher, load_teacher
from deit_jax.parallel.agreement import agree
from deit_jax.parallel.distributed import first_process_first, is_main_process
from deit_jax.reporting.run_log import RunLog
from deit_jax.storage.workdir import Workdir, WorkdirLike
from deit_jax.training.loop import Results, finished_run
from deit_jax.training.loop import train as run_training
from deit_jax.training.preparation import Opened, build_run, facts, open_run, with_shared_index
from deit_jax.training.wall_time import WallTime


def train(config: ConfigDict, workdir: WorkdirLike) -> Results:
    """Trains `config` in `workdir`, or resumes there. Returns the content of `results.json`.

    A new run starts from config.model.weights, if given. With `config.teacher.recipe` the teacher is trained first, in
    `workdir`/teacher. Raises ConfigError, DataError, WeightsError, CheckpointError or LogError, each with a one-line message.
    """
    workdir = Workdir.at(workdir)
    return _train_with(config, workdir, shared_cache_folder(workdir.path))


def _train_with(config: ConfigDict, workdir: Workdir, shared: Path) -> Results:
    """Like `train`; `shared` is the folder shared by all processes, which a teacher's run has in common with its student's."""
    wall_time = WallTime(workdir, write=is_main_process())
    opened = agree(
        lambda: first_process_first(lambda: _open(config, workdir, shared)), lambda opened: facts(config, opened)
    )
    config = opened.config
    with RunLog(config, workdir, silent=not is_main_process()) as log:
        finished = finished_run(config, workdir, opened)
        results = finished or _train_on(config, workdir, opened, log, wall_time)
        if config.log.report:
            report_of_finished_run(workdir, log, replace=finished is None)
    return results


def _open(config: ConfigDict, workdir: Workdir, shared: Path) -> Opened:
    validate(config)
    if config.model.weights == MUST_BE_GIVEN:
        raise ConfigError(
            "this configuration continues from a trained model: set config.model.weights to its --workdir, a weights file, or "
            "'pretrained'"
        )
    return open_run(config, workdir, shared)


def _train_on(config: ConfigDict, workdir: Workdir, opened: Opened, log: RunLog, wall_time: WallTime) -> Results:
    class_names = opened.train_source.class_names
    initial = load_initial(config, workdir, opened.record, class_names)
    if config.teacher.recipe is not None and not config.teacher.answers:
        shapes = None
        if config.features.pairs:
            size = opened.plan.image_size
            shapes = abstract_teacher(config, opened.plan.num_classes, size, jax.default_backend())
        build_run(config, opened, shapes)  # fail before the teacher is trained
        _check_classes_of_recipe(config, opened)
        console.say("training the teacher first, then its student")
        _train_with(config.teacher.recipe, workdir.teacher, opened.shared)
        wall_time = WallTime(workdir, write=is_main_process())  # the teacher's run has its own
    teacher = load_teacher(config, workdir, class_names)
    networks = () if teacher is None else teacher.networks
    agree(lambda: networks, lambda networks: {"the teacher": [network.weights for network in networks]})
    return run_training(config, workdir, teacher, initial, log, opened, wall_time)


def _check_classes_of_recipe(config: ConfigDict, opened: Opened) -> None:
    data = with_shared_index(config.teacher.recipe.data, opened.shared)
    names = opened.train_source.class_names
    teacher_names = agree(
        lambda: first_process_first(lambda: open_source(data, "train").class_names),
        lambda names: {"the teacher's class names": list(names)},
    )
    if config.teacher.classes is None and needs_logits(config) and order_of(names, teacher_names) is None:
        raise ConfigError(
            f"config.teacher.recipe trains on other classes than the student's ({difference(teacher_names, names)}): set its "
            "data, or map the classes with config.teacher.classes"
        )
