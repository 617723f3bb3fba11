"""Which checkpoints a workdir has, which are sound, and which is the best: by names and manifests, without Orbax."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from deit_jax import console
from deit_jax.errors import UserError
from deit_jax.storage.checkpoints import CheckpointPlaces
from deit_jax.storage.manifest import DamageError
from deit_jax.storage.workdir import Workdir, WorkdirLike

MOST_TRIES = 20  # of a reader whose checkpoints a run deletes, one after the other


class CheckpointError(UserError):
    """A checkpoint that is not there, does not fit or cannot be written. The message is one line."""


def newest_sound(places: CheckpointPlaces, clear_away: Callable[[int, str], None]) -> int | None:
    """The newest step whose files are what was written; `clear_away` is told of the later ones and why they are not it."""
    for step in reversed(places.steps()):
        try:
            places.check(step)
            return step
        except DamageError as error:
            clear_away(step, str(error))
    return None


def newest_step(workdir: WorkdirLike) -> int | None:
    """The step of the newest sound checkpoint of a workdir, which opening `Checkpoints` there would find; None if there is none.

    Nothing is changed; a run may be writing there.
    """
    places = Workdir.at(workdir).checkpoints
    if not places.have_manifests():
        return max(places.steps(), default=None)

    def pass_over(step: int, reason: str) -> None:
        if places.has(step) and not places.is_unfinished(step):  # a run may be writing it now, or have deleted it
            console.warn(f"checkpoint {step} is DAMAGED: {reason}; the one before it is used")

    for _ in range(MOST_TRIES):
        before = places.steps()
        if (step := newest_sound(places, pass_over)) is not None or places.steps() == before:
            return step
    return None


def is_opened(workdir: WorkdirLike) -> bool:
    """Whether a run has opened its checkpoints in a workdir, though it may have saved none yet."""
    return Workdir.at(workdir).checkpoints.have_manifests() or has_checkpoints(workdir)


def last_step(workdir: WorkdirLike) -> int | None:
    """The step of the newest finished checkpoint of a workdir, whose files are not compared; None if there is none."""
    return max(_finished_steps(Workdir.at(workdir).checkpoints), default=None)


def _finished_steps(places: CheckpointPlaces) -> list[int]:
    with_manifests = places.have_manifests()
    return [step for step in places.steps() if places.is_sealed(step) or not with_manifests]


def has_checkpoints(workdir: WorkdirLike) -> bool:
    """Whether a training run has saved anything in a workdir."""
    return bool(Workdir.at(workdir).checkpoints.steps())


def _facts_of(places: CheckpointPlaces, step: int) -> dict[str, Any]:
    """What a checkpoint's manifest says of it; {} if it cannot be read, which whoever needs the checkpoint finds out."""
    try:
        return places.facts(step)
    except DamageError:
        return {}


def scored_steps(
    places: CheckpointPlaces, steps: Iterable[int], scored_by: Mapping[str, Any] | None
) -> tuple[list[tuple[float, int]], list[int]]:
    """[(top-1, step), ...] of the checkpoints that were scored by this evaluation, and the steps of those scored by another.

    What is not known, of earlier versions or here, is taken for the same.
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


def say_what_is_not_compared(steps: list[int]) -> None:
    """Print which checkpoints' scores are not compared, if there are any."""
    if steps:
        console.say(
            f"checkpoint {', '.join(map(str, steps))}: scored on other evaluation images or crops, not compared with later ones"
        )


def find_step(workdir: WorkdirLike, which: str) -> int:
    """The step that "newest", "best" or a number means in a workdir; its files have been checked."""
    places = Workdir.at(workdir).checkpoints
    if which == "newest":
        step = newest_step(workdir)
        if step is None:
            raise CheckpointError(f"{places}: no complete checkpoint here; let the training run save one")
        return step
    there = _finished_steps(places)
    if which == "best":
        latest = [facts for step in there if (facts := _facts_of(places, step)).get("top1") is not None]
        if not latest:
            raise CheckpointError(f"{places}: no checkpoint here was evaluated, so none is the best; take the newest")
        scored, others = scored_steps(places, there, latest[-1].get("scored_by"))
        say_what_is_not_compared(others)
        step = max(scored)[1]
    elif which.isascii() and which.isdigit():
        step = int(which)
    else:
        raise CheckpointError(f"checkpoint {which!r} is none of newest, best and a step's number")
    if step not in there:
        steps = ", ".join(map(str, there)) or "none"
        raise CheckpointError(f"{places}: no complete checkpoint of step {step} here (there are: {steps})")
    if places.have_manifests():
        try:
            places.check(step)
        except DamageError as error:
            if not places.has(step):
                raise FileNotFoundError(step) from error  # deleted meanwhile by the run that is writing here
            raise CheckpointError(f"checkpoint {step} is DAMAGED: {error}; take another") from error
    return step
