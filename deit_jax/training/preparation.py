"""Everything about a run that can be refused, before a byte of its workdir is written."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.cache_folder import shared_cache_folder, why_unsafe
from deit_jax.config import ConfigError
from deit_jax.data.bad_images import BadImages
from deit_jax.data.classes import with_classes
from deit_jax.data.folder_index import AUTO
from deit_jax.data.identity import Identity
from deit_jax.data.loading import train_batches
from deit_jax.data.registry import open_source, train_crop
from deit_jax.data.sources import ImageSource, digest, searched_folders
from deit_jax.evaluation.run import Evaluator, open_extra_sets
from deit_jax.parallel.host_rows import HostRows
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.rendezvous import versions
from deit_jax.plugins import import_plugins
from deit_jax.reporting.fields import flat
from deit_jax.reporting.run_log import read_metrics
from deit_jax.storage.workdir import Workdir, WorkdirLike
from deit_jax.training.checkpoint_folder import is_opened, last_step
from deit_jax.training.plan import Plan, resolve
from deit_jax.training.program import Program, build_program
from deit_jax.training.record import as_begun, check_workdir, recorded_mixing


@dataclasses.dataclass(frozen=True)
class Opened:
    """The data and the plan of a run, and what its workdir says of an earlier start."""

    train_source: ImageSource
    eval_source: ImageSource  # labels count in the training images' class names
    identity: Identity
    record: dict[str, Any] | None  # of the workdir; None if it is new
    plan: Plan
    config: ConfigDict  # what the run goes on with, see `as_begun`
    shared: Path  # the folder of what its processes keep for the next start, see `shared_cache_folder`


@dataclasses.dataclass(frozen=True)
class Built:
    """What is compiled and evaluated in a run."""

    mesh: Mesh
    program: Program
    evaluator: Evaluator
    extra_sources: dict[str, ImageSource]


def open_run(config: ConfigDict, workdir: WorkdirLike, shared: Path | None = None) -> Opened:
    """Open the data of a validated configuration and compare it, and the configuration, with what `workdir` was started with.

    shared: as in `Opened`; None: beside the workdir.

    Raises ConfigError or DataError: the data cannot be opened or does not fit, the workdir holds another run, or it holds a
    plugin, which could not be imported from there again.
    """
    workdir = Workdir.at(workdir)
    import_plugins(config.plugins, "config.plugins", workdir=workdir.path)
    shared = shared or shared_cache_folder(workdir.path)
    data = with_shared_index(config.data, shared)
    train_source, eval_source = open_source(data, "train"), open_source(data, "eval")
    names = train_source.class_names
    if len(names) > (there := len(eval_source.class_names)):
        console.warn(f"there are evaluation images of {there} of the {len(names)} classes only")
    eval_source = with_classes(eval_source, names, what="the evaluation images", of="the training images")
    identity = Identity.of(train_source, eval_source)
    record = check_workdir(workdir, config, identity)
    config = as_begun(config, record)
    if record is None:
        _refuse_inside_the_data(workdir, (train_source, eval_source))
    else:
        _refuse_lost_checkpoints(workdir)
    plan = resolve(
        config,
        num_images=len(train_source),
        data_classes=len(names),
        # A run that went on with other images keeps the epochs it began with.
        epoch_steps=None if record is None else record["resolved"]["steps_per_epoch"],
        mixing=None if record is None else recorded_mixing(record),
    )
    if (done := last_step(workdir)) is not None and done > plan.total_steps:
        raise ConfigError(
            f"{workdir} has done {done:,} steps already, config.train.max_steps={config.train.max_steps} asks for fewer: raise "
            "it to go on; nothing was trained"
        )
    return Opened(train_source, eval_source, identity, record, plan, config, shared)


def with_shared_index(data: ConfigDict, shared: Path) -> ConfigDict:
    """A `data` section whose folder indices lie where all processes of a run find what the first one has listed.

    Unchanged for a single process, where data.index is not "auto", and where other users could put an index into `shared`.
    """
    if data.index != AUTO or jax.process_count() == 1 or why_unsafe(shared):
        return data
    data = copy.deepcopy(data)
    data.index = str(shared)
    return data


def _refuse_inside_the_data(workdir: Workdir, sources: Sequence[ImageSource]) -> None:
    """A workdir among the class folders would be a class at the next start."""
    for folder in {folder for source in sources for folder in searched_folders(source)}:
        if workdir.path.resolve().is_relative_to(Path(folder).resolve()):
            raise ConfigError(
                f"--workdir={workdir} is inside {folder}, whose folders are classes: give a folder outside the data"
            )


def _refuse_lost_checkpoints(workdir: Workdir) -> None:
    if not is_opened(workdir) and read_metrics(workdir):
        raise ConfigError(
            f"{workdir}/checkpoints is gone, although metrics.jsonl shows that the run has trained: restore it, or start from "
            "scratch in another --workdir"
        )


def step_batches(
    config: ConfigDict,
    source: ImageSource,
    plan: Plan,
    rows: HostRows,
    start: int,
    end: int,
    bad_images: BadImages | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The rows of the training batches of the steps from `start` (counted from 0) to `end` - 1; see `train_batches`."""
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
    )


# What may differ between the processes of a run: where things are on each machine, and how fast it reads.
_PLACES = (
    "data.path",
    "data.index",
    "data.num_threads",
    "data.num_workers",
    "data.prefetch_batches",
    "parallel.compilation_cache",
)
_PLACES_OF_SETS = re.compile(r"(teacher\.recipe\.)?evaluation\.extra\.[^.]+\.(path|labels)$")


def common_facts(config: ConfigDict) -> dict[str, Any]:
    """What has to be the same in all processes whatever they do, by the names that messages have: versions and configuration."""
    return versions() | {
        f"config.{name}": value
        for name, value in flat(json.loads(config.to_json_best_effort()))
        if name.removeprefix("teacher.recipe.") not in _PLACES and not _PLACES_OF_SETS.match(name)
    }


def facts(config: ConfigDict, opened: Opened) -> dict[str, Any]:
    """What has to be the same in all processes that train together; see `agree`."""
    identity = opened.identity
    return common_facts(config) | {
        "class names": list(identity.class_names),
        "training images": identity.train.images,
        "evaluation images": identity.evaluation.images,
        "digest of the training images": identity.train.digest,
        "digest of the evaluation images": identity.evaluation.digest,
        "config.json of the workdir": "none" if opened.record is None else digest(json.dumps(opened.record).encode()),
    }


def build_run(config: ConfigDict, opened: Opened) -> Built:
    """Build program and evaluator, and open the further evaluation sets. Nothing is computed on a device yet.

    Raises ConfigError for what cannot be built.
    """
    plan = opened.plan
    mesh = make_mesh(fsdp=config.parallel.fsdp)
    program = build_program(config, plan, mesh, resumed=opened.record is not None)
    evaluator = Evaluator(config, opened.eval_source, mesh, image_size=plan.image_size, keep_images=True)
    # Opened and left: what cannot read so, e.g. workers without shared memory, is refused before anything is written.
    step_batches(config, opened.train_source, plan, program.host_rows, 0, plan.total_steps)
    index = with_shared_index(config.data, opened.shared).index
    extra_sources = open_extra_sets(config, opened.train_source.class_names, strict=False, index=index)
    return Built(mesh, program, evaluator, extra_sources)
