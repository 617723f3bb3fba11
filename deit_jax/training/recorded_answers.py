"""Checks that a folder of recorded answers fits a run, before anything is computed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.answers.decisions import warning_of
from deit_jax.answers.files import AnswersError, AnswersFolder, Facts, shard_steps
from deit_jax.answers.fingerprint import (
    check_fingerprint,
    fingerprint,
    library_versions,
    other_versions,
    teacher_fields,
)
from deit_jax.answers.kinds import check_kind, recorded_kind
from deit_jax.answers.reading import open_answers
from deit_jax.config import ConfigError
from deit_jax.data.identity import Images
from deit_jax.data.sources import ImageSource
from deit_jax.data.unlabelled import labelled_of, unlabelled_of
from deit_jax.parallel.distributed import from_main_process
from deit_jax.storage.workdir import Workdir
from deit_jax.training.plan import Plan


class LogitsSource(Protocol):
    """A teacher: a frozen network of this package, or anything else that computes logits from images."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Identifies it, in JSON types: a part of the fingerprint of its answers."""

    @property
    def description(self) -> str:
        """A description for users."""

    @property
    def num_classes(self) -> int:
        """The number of the student's classes."""

    def logits(self, images: jax.Array) -> jax.Array:
        """Returns float32[B, num_classes], sharded like the images: float32[B, S, S, 3], normalised for the student."""


def depends_on(
    config: ConfigDict, plan: Plan, source: ImageSource, mesh: Mesh, teacher: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Returns the fingerprint of a run's answers. teacher: see `fingerprint`."""
    further = unlabelled_of(source)
    return fingerprint(
        config,
        Images.of(labelled_of(source)),
        source.class_names,
        plan.order,
        mesh,
        image_size=plan.image_size,
        compute_dtype=plan.compute_dtype,
        teacher=teacher,
        unlabelled=None if further is None else Images.of(further),
    )


def given_answers(config: ConfigDict, plan: Plan, source: ImageSource, mesh: Mesh) -> tuple[AnswersFolder, Facts]:
    """Opens config.teacher.answers and checks that the answers fit a run. Warns of other versions of libraries.

    Raises AnswersError or ConfigError, in one line with the name of the field, for answers to other images, for another loss, or
    to fewer steps.
    """
    folder, facts = open_answers(config.teacher.answers)
    where = f"config.teacher.answers={folder}"
    # Only the answers identify their teacher. If the configuration names one, everything except its weights is compared.
    recorded = facts.fingerprint["teacher"]
    named = teacher_fields(config) if config.teacher.weights else {}
    teacher = recorded | {name: value for name, value in named.items() if name in recorded}
    then = "give the options that the answers were recorded with, or record them for this run (--mode=record)"
    check_fingerprint(facts, depends_on(config, plan, source, mesh, teacher), where, then=then)
    if facts.kind.num_classes != plan.num_classes:
        raise ConfigError(
            f"{where} does not fit this run: num_classes: the answers have {facts.kind.num_classes}, this run {plan.num_classes}"
        )
    check_kind(facts.kind, config, where)
    if facts.total_steps < plan.total_steps:
        raise ConfigError(
            f"{where} ends after {facts.total_steps:,} steps, this run has {plan.total_steps:,}: record more (the same command "
            "with --mode=record adds them), or train shorter (config.train.epochs, config.train.max_steps)"
        )
    if (line := other_versions(facts)) is not None:
        console.warn(line)
    figures = folder.figures()
    if figures is not None and (warning := warning_of(figures)) is not None:
        console.warn(f"{where}: {warning}")
    return folder, facts


def recorded_teacher(answers: tuple[AnswersFolder, Facts] | None) -> dict[str, Any] | None:
    """Returns what results.json says of the teacher whose recorded answers a run has used; None without such answers.

    teacher: its description. answers: the folder. decisions: the result of `AnswersFolder.figures`. All processes call it.
    """
    if answers is None:
        return None
    folder, facts = answers
    return {
        "teacher": facts.teacher,
        "answers": str(folder),
        "decisions": from_main_process(folder.figures),
    }


def planned_recording(
    path: Path, config: ConfigDict, plan: Plan, source: ImageSource, mesh: Mesh, logits_source: LogitsSource
) -> tuple[AnswersFolder, Facts]:
    """Returns the folder for a source's answers to a run, and the future content of its answers.json. Writes nothing.

    All processes call it. Raises AnswersError for a folder that holds other answers, with the name of the first field that
    differs, or other files.
    """
    folder, kind = AnswersFolder(path), recorded_kind(config, plan.num_classes)
    facts = Facts(
        kind=kind,
        batch_size=plan.order.batch_size,
        total_steps=plan.total_steps,
        shard_steps=shard_steps(kind, plan.order.batch_size),
        teacher=logits_source.description,
        fingerprint=depends_on(config, plan, source, mesh, dict(logits_source.identity)),
        versions=library_versions(),
    )

    def of_earlier_start() -> dict[str, Any]:
        folder.refuse_other_files()
        there = folder.facts()
        if there is None:
            return {}
        then = "give another folder, or the options of its first recording"
        if there.kind != kind:
            raise AnswersError(f"{path} holds other answers: {there.kind}, not {kind}; {then}")
        check_fingerprint(there, facts.fingerprint, path, then=then)
        if (line := other_versions(there)) is not None:
            console.warn(line)
        total = max(there.total_steps, facts.total_steps)
        return {"teacher": there.teacher, "versions": there.versions, "total_steps": total}

    return folder, dataclasses.replace(facts, **from_main_process(of_earlier_start))


@contextlib.contextmanager
def held(folder: AnswersFolder, facts: Facts) -> Iterator[None]:
    """Locks a folder until the block ends, and writes its answers.json. All processes call it."""
    with contextlib.ExitStack() as stack:

        def begin() -> None:
            stack.enter_context(folder.locked(console.warn))
            if folder.facts() != facts:
                folder.write_facts(facts)

        from_main_process(begin)
        yield


def check_answers(workdir: Workdir, record: Mapping[str, Any] | None, facts: Facts | None) -> dict[str, Any] | None:
    """Returns what a run records of the answers that it uses, None without any. record: of an earlier start, or None.

    Raises ConfigError if the run started with other answers.
    """
    now = None if facts is None else {"digest": facts.digest, "teacher": facts.teacher}
    before = (record or {}).get("resolved", {}).get("answers")
    if before is not None and now is not None and before["digest"] != now["digest"]:
        raise ConfigError(
            f"{workdir} started with other answers than config.teacher.answers has now (of {before['teacher']}, digest "
            f"{before['digest'][:8]} then; of {now['teacher']}, digest {now['digest'][:8]} now): give the same ones, or use "
            "another --workdir"
        )
    return now
