"""Checks and builds everything that a run needs before it writes to its workdir."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.answers.files import AnswersFolder, Facts
from deit_jax.answers.kinds import recorded_kind
from deit_jax.aot.topologies import peak_flops
from deit_jax.cache_folder import shared_cache_folder, why_unsafe
from deit_jax.config import ConfigError
from deit_jax.data.bad_images import BadImages
from deit_jax.data.classes import with_classes
from deit_jax.data.folder_index import AUTO
from deit_jax.data.identity import Identity, Images
from deit_jax.data.loading import train_batches
from deit_jax.data.reading_speed import ReadingSpeed
from deit_jax.data.registry import holds_out, open_source, train_crop
from deit_jax.data.sources import ImageSource, digest, searched_folders
from deit_jax.data.splits import share_images
from deit_jax.data.unlabelled import labelled_of, open_training_images
from deit_jax.evaluation.run import Evaluator, open_extra_sets, protocol_of
from deit_jax.models.flops import train_flops
from deit_jax.parallel.compilation_cache import share_compiled_programs
from deit_jax.parallel.distributed import from_main_process
from deit_jax.parallel.host_rows import HostRows
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.rendezvous import versions
from deit_jax.plugins import import_plugins
from deit_jax.reporting.fields import flat
from deit_jax.reporting.run_log import read_metrics
from deit_jax.reporting.speed import Speed
from deit_jax.storage.files import UnreadableError
from deit_jax.storage.workdir import CONFIG, Workdir, WorkdirLike
from deit_jax.training.checkpoint_folder import has_checkpoints, is_opened, last_step
from deit_jax.training.features import projection_flops
from deit_jax.training.plan import Plan, resolve
from deit_jax.training.program import Initial, Program, build_program
from deit_jax.training.record import (
    as_begun,
    check_workdir,
    claim_workdir,
    recorded_mixing,
    scheduled_steps,
)
from deit_jax.training.recorded_answers import given_answers
from deit_jax.training.results import finished_results, show_results
from deit_jax.training.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class Opened:
    """The data and the plan of a run, and the record of its workdir."""

    train_source: ImageSource  # a `JointSource` if there are unlabelled images
    eval_source: ImageSource  # labels index the training images' class names
    identity: Identity
    record: dict[str, Any] | None  # from an earlier start; None if the workdir is new
    plan: Plan
    config: ConfigDict  # with the values of the first start, see `as_begun`
    shared: Path  # the folder of the caches that its processes share, see `shared_cache_folder`


@dataclasses.dataclass(frozen=True)
class Built:
    """The compiled program and the evaluation of a run."""

    mesh: Mesh
    program: Program
    evaluator: Evaluator
    extra_sources: dict[str, ImageSource]
    answers: tuple[AnswersFolder, Facts] | None = None  # recorded answers that replace the teacher


def open_run(config: ConfigDict, workdir: WorkdirLike, shared: Path | None = None) -> Opened:
    """Opens the data of a validated configuration, and compares both with the record of `workdir`.

    shared: as in `Opened`; None: next to the workdir.

    Raises ConfigError or DataError if the data cannot be opened or does not fit, or if the workdir holds another run, has lost
    files of its run, or holds a plugin (which could not be imported from there again).
    """
    workdir = Workdir.at(workdir)
    workdir.checkpoints.check_writers(jax.process_count())
    import_plugins(config.plugins, "config.plugins", workdir=workdir.path)
    shared = shared or shared_cache_folder(workdir.path)
    data = with_shared_index(config.data, shared)
    train_source = open_training_images(config, data)
    names = train_source.class_names
    eval_source = open_evaluation_images(data, names)
    if share_images(data.train_split, data.eval_split) and not holds_out(data):
        console.warn(
            f"config.data.eval_split={data.eval_split} has images of config.data.train_split={data.train_split}, on which "
            "scores are too good: set parts without common images, e.g. train[:90%] and train[90%:]"
        )
    identity = Identity.of(train_source, eval_source)
    record = check_workdir(workdir, config, identity)
    config = as_begun(config, record)
    if record is None:
        _refuse_inside_the_data(workdir, (train_source, eval_source))
    _refuse_lost_files(workdir, record)
    plan = resolve(
        config,
        num_images=identity.train.images,
        data_classes=len(names),
        # A run whose images have changed keeps the epoch length of its first start.
        epoch_steps=None if record is None else record["resolved"]["steps_per_epoch"],
        mixing=None if record is None else recorded_mixing(record),
        num_unlabelled=None if identity.unlabelled is None else identity.unlabelled.images,
        unlabelled=None if record is None else record["resolved"].get("unlabelled_rows"),
    )
    refuse_later_step(workdir, plan)
    return Opened(train_source, eval_source, identity, record, plan, config, shared)


def open_evaluation_images(data: ConfigDict, names: Sequence[str]) -> ImageSource:
    """Opens the evaluation images of a `data` section, with labels that index the training images' class names.

    Warns if there are none of some classes. Raises DataError if they cannot be opened, or have other classes.
    """
    source = open_source(data, "eval")
    if len(names) > (num_eval := len(source.class_names)):
        console.warn(f"there are evaluation images of only {num_eval} of the {len(names)} classes")
    return with_classes(source, names, what="the evaluation images", of="the training images")


def with_shared_index(data: ConfigDict, shared: Path) -> ConfigDict:
    """Returns a `data` section whose folder indices are in `shared`, where all processes read the first one's listing.

    Unchanged for a single process, if data.index is not "auto", and if other users could write to `shared`.
    """
    if data.index != AUTO or jax.process_count() == 1 or why_unsafe(shared):
        return data
    data = copy.deepcopy(data)
    data.index = str(shared)
    return data


def _refuse_inside_the_data(workdir: Workdir, sources: Sequence[ImageSource]) -> None:
    """A workdir among the class folders would become a class at the next start; unlabelled images are searched at any depth."""
    classes = {folder for source in sources for folder in searched_folders(labelled_of(source))}
    for folder in {folder for source in sources for folder in searched_folders(source)}:
        if workdir.path.resolve().is_relative_to(Path(folder).resolve()):
            what = "whose folders are classes" if folder in classes else "which is searched for unlabelled images"
            raise ConfigError(f"--workdir={workdir} is inside {folder}, {what}: use a folder outside the data")


def _refuse_lost_files(workdir: Workdir, record: Mapping[str, Any] | None) -> None:
    has_rows = bool(read_metrics(workdir))
    if record is None and (has_rows or has_checkpoints(workdir)):
        raise ConfigError(
            f"{workdir.address(CONFIG)} is missing although the run has trained: restore it, or use another --workdir"
        )
    if has_rows and not is_opened(workdir):
        raise ConfigError(
            f"{workdir}/checkpoints is missing, although metrics.jsonl shows that the run has trained: restore it, or start from "
            "scratch in another --workdir"
        )


def refuse_later_step(workdir: Workdir, plan: Plan) -> None:
    """Raises ConfigError if a run has trained past the last step of its plan."""
    if (done := last_step(workdir)) is not None and done > plan.total_steps:
        raise ConfigError(
            f"{workdir} is already at step {done:,}, after config.train.max_steps={plan.total_steps}; raise it to resume; "
            "nothing was trained"
        )


def step_batches(
    config: ConfigDict,
    source: ImageSource,
    plan: Plan,
    rows: HostRows,
    start: int,
    end: int,
    bad_images: BadImages | None = None,
    *,
    speed: ReadingSpeed | None = None,
    checksums: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this process's rows of the training batches of steps `start` (counted from 0) to `end` - 1; see `train_batches`."""
    data = config.data
    return train_batches(
        source,
        plan.order,
        train_crop(data, plan.image_size, config.evaluation),
        start_step=start,
        stop_step=end,
        stretches=rows.stretches,
        dealt=rows.dealt,
        num_threads=data.num_threads,
        num_workers=data.num_workers,
        prefetch_batches=data.prefetch_batches,
        on_bad_image=data.on_bad_image,
        bad_images=bad_images,
        speed=speed,
        checksums=checksums,
    )


# A process's own fields, which may differ between those of a run: paths on each machine, and settings of reading.
_OWN_FIELDS = (
    "data.path",
    "unlabelled.path",
    "data.index",
    "data.copies_gib",
    "data.num_threads",
    "data.num_workers",
    "data.prefetch_batches",
    "data.batches_ahead",
    "parallel.compilation_cache",
)
_OWN_OF_SETS = re.compile(r"(teacher\.recipe\.)?evaluation\.extra\.[^.]+\.(path|labels)$")


def common_facts(config: ConfigDict) -> dict[str, Any]:
    """Returns what must be the same in all processes in every mode, by the name used in messages: versions and configuration."""
    return versions() | {
        f"config.{name}": value
        for name, value in flat(json.loads(config.to_json_best_effort()))
        if name.removeprefix("teacher.recipe.") not in _OWN_FIELDS and not _OWN_OF_SETS.match(name)
    }


def facts(config: ConfigDict, opened: Opened) -> dict[str, Any]:
    """Returns what must be the same in all processes that train together; see `agree`."""
    identity = opened.identity
    return common_facts(config) | {
        "class names": list(identity.class_names),
        "training images": identity.train.images,
        "evaluation images": identity.evaluation.images,
        "digest of the training images": identity.train.digest,
        "digest of the evaluation images": identity.evaluation.digest,
        **facts_of_unlabelled(identity.unlabelled),
        "config.json of the workdir": "none" if opened.record is None else digest(json.dumps(opened.record).encode()),
    }


def facts_of_unlabelled(images: Images | None) -> dict[str, Any]:
    """Returns what must be the same in all processes that read unlabelled images; nothing without any."""
    if images is None:
        return {}
    return {"unlabelled images": images.images, "digest of the unlabelled images": images.digest}


def build_run(config: ConfigDict, opened: Opened, teacher: Teacher | None = None) -> Built:
    """Builds program and evaluator, and opens the extra evaluation sets. Computes nothing on a device.

    teacher: its variables may be shapes; read only with config.features.pairs.

    Raises ConfigError for a configuration that cannot be built, and AnswersError for recorded answers that cannot be used.
    """
    plan = opened.plan
    mesh = make_mesh(fsdp=config.parallel.fsdp)
    answers = given_answers(config, plan, opened.train_source, mesh) if config.teacher.answers else None
    kind = None if answers is None else answers[1].kind
    if config.teacher.record and not config.teacher.answers:
        kind = recorded_kind(config, plan.num_classes)
    attention = None if opened.record is None else opened.record["resolved"].get("attention")
    program = build_program(
        config, plan, mesh, resumed=opened.record is not None, answers=kind, teacher=teacher, attention=attention
    )
    evaluator = Evaluator(config, opened.eval_source, mesh, image_size=plan.image_size, keep_images=True)
    # Opened but not read: raises, e.g. for workers without shared memory, before anything is written.
    step_batches(config, opened.train_source, plan, program.host_rows, 0, plan.total_steps)
    index = with_shared_index(config.data, opened.shared).index
    extra_sources = open_extra_sets(config, opened.train_source.class_names, strict=False, index=index)
    return Built(mesh, program, evaluator, extra_sources, answers)


def finished_run(
    config: ConfigDict, workdir: WorkdirLike, opened: Opened, *, locked: bool = False
) -> dict[str, Any] | None:
    """Prints and returns the results of a finished run; None if steps remain or the results are damaged.

    locked: this process holds the workdir and rewrites damaged results, which it reports.
    """
    if opened.record is None:
        return None
    try:
        results = finished_results(workdir, opened.plan)
    except UnreadableError as error:
        if locked:
            console.warn(f"{error}; it will be rewritten")
        return None
    if results is None:
        return None
    done, schedule = opened.plan.total_steps, scheduled_steps(opened.record)
    if done < schedule:
        console.say(
            f"{workdir} has finished config.train.max_steps={done} of the {schedule:,} steps of its schedule; raise it to resume"
        )
    else:
        console.say(f"{workdir} is finished after {done:,} steps. Use another --workdir to start from scratch.")
    show_results(config, results)
    return results


def claim(
    workdir: Workdir,
    opened: Opened,
    teachers: Sequence[Mapping[str, Any]],
    initial: Initial | None,
    answers: Mapping[str, Any] | None = None,
    attention: str | None = None,
) -> None:
    """Writes `config.json` and enables the compilation cache. All processes call it, with the workdir locked."""
    write = functools.partial(
        claim_workdir, workdir, opened.config, opened.plan, opened.identity, answers=answers, attention=attention
    )
    began_with = "" if initial is None else initial.digest
    from_main_process(lambda: write(checked=opened.record, teachers=teachers, initial=began_with))
    if unsafe := share_compiled_programs(opened.config.parallel.compilation_cache, opened.shared):
        console.warn(unsafe)


def speed_of(opened: Opened, built: Built, teacher: Teacher | None) -> Speed:
    """Returns the batch size, devices and FLOPs per image of the run."""
    config, model = opened.config, None if teacher is None else teacher.model
    flops = train_flops(built.program.model, model, opened.plan.image_size)
    return Speed(
        batch_size=config.train.batch_size,
        num_devices=built.mesh.size,
        flops=flops._replace(student=flops.student + projection_flops(built.program.features)),
        peak_flops=peak_flops(built.mesh.devices.flat[0].device_kind, config.log.peak_tflops),
    )


def scored_by(opened: Opened) -> dict[str, Any]:
    """Returns how the run scores its weights, see `Checkpoints`."""
    config = opened.config
    return dataclasses.asdict(opened.identity.evaluation) | {
        "protocol": protocol_of(config, opened.plan.image_size),
        "fusion": config.model.fusion,
        "weights": ["raw", "ema"] if config.ema.decay else ["raw"],
    }
