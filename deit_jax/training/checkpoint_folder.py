"""Selects checkpoints of a workdir by name, manifest and score, without Orbax."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from deit_jax import console
from deit_jax.errors import UserError
from deit_jax.storage.checkpoints import CheckpointPlaces, DamageError
from deit_jax.storage.workdir import Workdir, WorkdirLike

MAX_READ_ATTEMPTS = 20  # retries when a running job deletes the selected checkpoint


class CheckpointError(UserError):
    """A checkpoint that does not exist, does not fit or cannot be written."""


def newest_sound(places: CheckpointPlaces, on_damage: Callable[[int, str], None]) -> int | None:
    """Returns the newest step whose files match its manifest. Calls `on_damage` with each later step and its fault."""
    for step in reversed(places.steps()):
        try:
            places.check(step)
            return step
        except DamageError as error:
            on_damage(step, str(error))
    return None


def newest_step(workdir: WorkdirLike) -> int | None:
    """Returns the step of the newest sound checkpoint of a workdir, or None. Changes nothing; a run may be writing there."""
    places = Workdir.at(workdir).checkpoints
    if not places.have_manifests():
        return max(places.steps(), default=None)

    def warn(step: int, reason: str) -> None:
        if places.has(step) and not places.is_unfinished(step):  # otherwise a run is writing it, or has deleted it
            console.warn(f"checkpoint {step} is DAMAGED: {reason}; using the one before it")

    for _ in range(MAX_READ_ATTEMPTS):
        before = places.steps()
        if (step := newest_sound(places, warn)) is not None or places.steps() == before:
            return step
    return None


def is_opened(workdir: WorkdirLike) -> bool:
    """Returns whether a run has opened its checkpoints in a workdir, even if it has not saved any."""
    return Workdir.at(workdir).checkpoints.have_manifests() or has_checkpoints(workdir)


def last_step(workdir: WorkdirLike) -> int | None:
    """Returns the step of the newest finished checkpoint of a workdir, without checking its files; None if there is none."""
    return max(_finished_steps(Workdir.at(workdir).checkpoints), default=None)


def _finished_steps(places: CheckpointPlaces) -> list[int]:
    with_manifests = places.have_manifests()
    return [step for step in places.steps() if places.is_sealed(step) or not with_manifests]


def has_checkpoints(workdir: WorkdirLike) -> bool:
    """Returns whether a run has saved anything in a workdir."""
    return bool(Workdir.at(workdir).checkpoints.steps())


def _facts_of(places: CheckpointPlaces, step: int) -> dict[str, Any]:
    """Returns the facts in a checkpoint's manifest; {} if unreadable (reported when the checkpoint is loaded)."""
    try:
        return places.facts(step)
    except DamageError:
        return {}


def scored_steps(
    places: CheckpointPlaces, steps: Iterable[int], scored_by: Mapping[str, Any] | None
) -> tuple[list[tuple[float, int]], list[int]]:
    """Returns [(top-1, step), ...] of the checkpoints scored by this evaluation, and the steps of those scored by another.

    Unknown evaluations (of earlier versions, or `scored_by` None) count as the same.
    """
    scored, others = [], []
    for step in steps:
        facts = _facts_of(places, step)
        if facts.get("top1") is None:
            continue
        if None in (scored_by, facts.get("scored_by")) or facts["scored_by"] == scored_by:
            scored.append((facts["top1"], step))
        else:
            others.append(step)
    return scored, others


def report_not_compared(steps: list[int]) -> None:
    """Prints which checkpoints' scores are not compared, if any."""
    if steps:
        console.say(
            f"checkpoint {', '.join(map(str, steps))}: scored on other evaluation images or crops, not compared with later ones"
        )


def find_step(workdir: WorkdirLike, which: str) -> int:
    """Returns the step that "newest", "best" or a number selects in a workdir, after checking its files."""
    places = Workdir.at(workdir).checkpoints
    if which == "newest":
        step = newest_step(workdir)
        if step is None:
            raise CheckpointError(f"{places}: no complete checkpoint here; let the training run save one")
        return step
    finished = _finished_steps(places)
    if which == "best":
        evaluated = [facts for step in finished if (facts := _facts_of(places, step)).get("top1") is not None]
        if not evaluated:
            raise CheckpointError(
                f"{places}: no checkpoint here was evaluated, so there is no best one; use the newest"
            )
        scored, others = scored_steps(places, finished, evaluated[-1].get("scored_by"))
        report_not_compared(others)
        step = max(scored)[1]
    elif which.isascii() and which.isdigit():
        step = int(which)
    else:
        raise CheckpointError(f"checkpoint {which!r} is not newest, best or a step number")
    if step not in finished:
        steps = ", ".join(map(str, finished)) or "none"
        raise CheckpointError(f"{places}: no complete checkpoint of step {step} here (there are: {steps})")
    if places.have_manifests():
        try:
            places.check(step)
        except DamageError as error:
            if places.has_vanished(step):
                raise FileNotFoundError(step) from error  # a run has deleted it meanwhile
            raise CheckpointError(f"checkpoint {step} is DAMAGED: {error}; use another") from error
    return step
