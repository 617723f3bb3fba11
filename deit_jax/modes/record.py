"""--mode=record: writes a teacher's answers to the images of a training, once for any number of trainings."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.answers.decisions import Figures, described_figures, warning_of
from deit_jax.answers.files import AnswersFolder, Facts, described
from deit_jax.answers.kinds import recorded_kind
from deit_jax.answers.recording import Recording
from deit_jax.cache_folder import shared_cache_folder
from deit_jax.config import ConfigError
from deit_jax.config_check import validate
from deit_jax.config_features import refuse_recorded_features
from deit_jax.data.bad_images import BadImages
from deit_jax.data.identity import Images
from deit_jax.data.sources import ImageSource, fingerprint_of
from deit_jax.data.unlabelled import labelled_of, open_training_images, unlabelled_of
from deit_jax.errors import Stopped
from deit_jax.host_teacher import HostTeacher, changed_field
from deit_jax.host_teacher.source import HostSource
from deit_jax.modes.teacher import load_teacher
from deit_jax.parallel.agreement import agree
from deit_jax.parallel.compilation_cache import share_compiled_programs
from deit_jax.parallel.distributed import first_process_first, from_main_process, is_main_process
from deit_jax.parallel.mesh import make_mesh
from deit_jax.plugins import import_plugins
from deit_jax.training.answering import NetworkSource, Recorder, missing_shards, stretches_of
from deit_jax.training.interruption import Interruption
from deit_jax.training.plan import Plan, plan_of
from deit_jax.training.preparation import (
    common_facts,
    facts_of_unlabelled,
    step_batches,
    with_shared_index,
)
from deit_jax.training.program import build_asking
from deit_jax.training.recorded_answers import LogitsSource, held, planned_recording

_PRINT_EVERY = 10.0  # seconds between two lines of progress


def record(config: ConfigDict, output: Path, *, teacher: str | None = None) -> Facts:
    """Writes the answers of the configured teacher to all steps of the configured training to `output`; returns their facts.

    Complete shards are kept, and the images of their steps are not read.

    teacher: a teacher of another framework that replaces the configured one, see `deit_jax.host_teacher`.

    Raises ConfigError, DataError, WeightsError or AnswersError, each with a one-line message, and Stopped after a signal.
    """
    refuse_recorded_features(config, "--mode=record")
    validate(config if teacher is None else _with_answers(config, output))
    _check_teacher(config, another=teacher is not None)
    import_plugins(config.plugins, "config.plugins", workdir=output)
    data = with_shared_index(config.data, shared := shared_cache_folder(output))
    source = agree(
        lambda: first_process_first(lambda: open_training_images(config, data)),
        lambda found: (
            common_facts(config)
            | {
                "class names": list(found.class_names),
                "training images": len(labelled_of(found)),
                "digest of the training images": fingerprint_of(found),
            }
            | facts_of_unlabelled(None if (further := unlabelled_of(found)) is None else Images.of(further))
        ),
    )
    plan = plan_of(config, source)
    kind = recorded_kind(config, plan.num_classes)
    mesh = make_mesh(fsdp=config.parallel.fsdp)
    asking = build_asking(config, plan, mesh, kind)
    if unsafe := share_compiled_programs(config.parallel.compilation_cache, shared):
        console.warn(unsafe)
    if teacher is None:
        logits_source = source_of_logits(config, plan, source.class_names, mesh)
    else:
        logits_source = host_source(teacher, config, plan, source.class_names, mesh, output)
    bad_images = BadImages(console.warn)

    def read(first: int, end: int) -> Iterator[dict[str, np.ndarray]]:
        return step_batches(config, source, plan, asking.host_rows, first, end, bad_images, checksums=True)

    folder, facts = planned_recording(output, config, plan, source, mesh, logits_source)
    with held(folder, facts), Interruption() as interruption:
        shards = missing_shards(folder, facts)
        missing = stretches_of(facts, shards)
        remaining = sum(end - first for first, end in missing)
        console.announce(f"Recording in {output}", _facts(config, plan, source, logits_source, facts, remaining))
        recording = Recording(folder, facts, plan.order, asking.host_rows)
        recorder = Recorder(asking, logits_source, recording, read, source.class_names)
        progress = _Progress(remaining, config.train.batch_size)
        for first, end in missing:
            # Closed, so that readers end when an exception leaves the block.
            with contextlib.closing(recorder.stretch(first, end)) as steps:
                for step in steps:
                    progress.note(step)
                    if is_main_process() and progress.printed:
                        folder.note_progress(step)
                    if interruption.asked(step + 1):
                        raise Stopped(
                            f"stopped after step {step + 1}; complete shards are in {folder}, the same command continues"
                        )
        figures = recorder.finish()
        bad_images.warn_of_total()
        if is_main_process():
            folder.forget_progress()
    console.say(f"the answers to {facts.total_steps:,} steps are in {output}")
    _say_figures(figures, facts.total_steps)
    return facts


def _say_figures(figures: Figures | None, total_steps: int) -> None:
    """Prints how good the recorded teacher is."""
    if figures is None:
        console.say("an earlier version recorded these answers, which does not say how often the teacher is right")
        return
    steps = figures["steps"]
    counted = "" if steps == total_steps else f" (in {steps:,} of {total_steps:,} steps; the others have no counts)"
    console.say(f"{described_figures(figures)}{counted}")
    if (warning := warning_of(figures)) is not None:
        console.warn(warning)


def source_of_logits(config: ConfigDict, plan: Plan, class_names: tuple[str, ...], mesh: Mesh) -> LogitsSource:
    """Returns config.teacher's network."""
    teacher = load_teacher(config, Path(), class_names)
    assert teacher is not None
    return NetworkSource(config, teacher, mesh)


def host_source(
    spec: str, config: ConfigDict, plan: Plan, class_names: tuple[str, ...], mesh: Mesh, output: Path
) -> LogitsSource:
    """Returns a teacher of another framework, with the recorded identity if `output` holds answers of the same teacher.

    Raises ConfigError, in one line, for a teacher that cannot be used; DisagreementError if it differs between processes.
    """
    teacher = agree(
        lambda: HostTeacher(spec, config, class_names, plan.image_size),
        lambda loaded: {f"--teacher: {name}": value for name, value in loaded.identity.items() if name != "logits"},
    )

    def known() -> dict[str, Any]:
        there = AnswersFolder(output).facts()
        recorded = {} if there is None else there.fingerprint.get("teacher", {})
        return teacher.identity if changed_field(recorded, teacher.identity) else recorded

    identity = from_main_process(known)
    agree(lambda: changed_field(identity, teacher.identity), lambda changed: {"--teacher: its answers": changed})
    return HostSource(teacher, mesh, identity)


def _with_answers(config: ConfigDict, output: Path) -> ConfigDict:
    """Returns the configuration of a training from the answers in `output`, without its own teacher."""
    config = config.copy_and_resolve_references()
    with config.teacher.ignore_type():
        config.teacher.weights, config.teacher.recipe, config.teacher.answers = "", None, str(output)
    return config


def _check_teacher(config: ConfigDict, *, another: bool) -> None:
    """Refuses a configured teacher that cannot be recorded. another: --teacher replaces it."""
    if config.teacher.answers:
        raise ConfigError("config.teacher.answers is for trainings: to record, give only --output=FOLDER")
    if config.teacher.record:
        raise ConfigError("config.teacher.record is for trainings: to record, give only --output=FOLDER")
    recorded_kind(config, 1)  # there is a teacher
    if config.teacher.recipe is not None and not another:
        raise ConfigError(
            "config.teacher.recipe trains the teacher within a training: train it first, then record with "
            "--config.teacher.recipe=None --config.teacher.weights=WORKDIR/teacher (or record during the training, with "
            "config.teacher.record)"
        )


def _facts(
    config: ConfigDict, plan: Plan, source: ImageSource, logits_source: LogitsSource, facts: Facts, remaining: int
) -> dict[str, Any]:
    size = facts.total_steps * plan.order.batch_size * (facts.kind.row_bytes + 4)
    return {
        "teacher": logits_source.description,
        "answers": f"{described(facts)}, {size / 1e6:,.1f} MB in {facts.shards:,} shards",
        "images": f"{len(source):,}, {plan.image_size} px, {plan.compute_dtype}, as a training with this configuration sees them",
        "length": f"{facts.total_steps:,} steps of {config.train.batch_size} images, {remaining:,} of them missing",
    }


class _Progress:
    """Prints the progress, the speed and the remaining time of the recorder, every few seconds."""

    def __init__(self, remaining: int, batch_size: int) -> None:
        self._total, self._batch_size = remaining, batch_size
        self._done, self._printed_at = 0, time.monotonic()
        self._started: float | None = None  # when the first step was given to the device, compiled
        self.printed = False  # at the last note

    def note(self, step: int) -> None:
        """Counts a step."""
        now = time.monotonic()
        self._done += 1
        self.printed = now - self._printed_at >= _PRINT_EVERY or self._done == self._total
        if self._started is None:
            self._started = now
            return
        if self.printed:
            self._printed_at = now
            pace = (now - self._started) / (self._done - 1)
            left = console.duration(pace * (self._total - self._done))
            speed = f"{self._batch_size / pace:,.0f} images/s" if pace else ""
            console.say(f"recorded {self._done:,}/{self._total:,} steps (step {step + 1:,})  {speed}  ETA {left}")
