"""Which checkpoints a workdir has, which are sound, and which is the best: by names and manifests, without Orbax."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from deit_jax.errors import UserError
from deit_jax.reporting import console
from deit_jax.training import manifest

FORMAT = "format.json"  # is there since checkpoints have manifests
MOST_TRIES = 20  # of a reader whose checkpoints a run deletes, one after the other


class CheckpointError(UserError):
    """A checkpoint that is not there, does not fit or cannot be written. The message is one line."""


def steps_in(folder: Path) -> list[int]:
    """The steps that have a folder, finished or not, in order."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit() and path.is_dir())


def newest_sound(folder: Path, clear_away: Callable[[Path, str], None]) -> int | None:
    """The newest step whose files are what was written; `clear_away` is told of the later ones and why they are not it."""
    for step in reversed(steps_in(folder)):
        path = folder / str(step)
        try:
            manifest.check(path)
            return step
        except manifest.DamageError as error:
            clear_away(path, str(error))
    return None


def _pass_over(path: Path, reason: str) -> None:
    if path.is_dir() and not manifest.is_unfinished(path):  # a run may be writing it now, or have deleted it
        console.warn(f"checkpoint {path.name} is DAMAGED: {reason}; the one before it is used")


def newest_step(workdir: str | Path) -> int | None:
    """The step of the newest sound checkpoint of a workdir, which opening `Checkpoints` there would find; None if there is none.

    Nothing is changed; a run may be writing there.
    """
    folder = Path(workdir).absolute() / "checkpoints"
    if not folder.is_dir():
        return None
    if not (folder / FORMAT).exists():
        return max(steps_in(folder), default=None)
    for _ in range(MOST_TRIES):
        before = steps_in(folder)
        if (step := newest_sound(folder, _pass_over)) is not None or steps_in(folder) == before:
            return step
    return None


def is_opened(workdir: str | Path) -> bool:
    """Whether a run has opened its checkpoints in a workdir, though it may have saved none yet."""
    folder = Path(workdir) / "checkpoints"
    return (folder / FORMAT).exists() or has_checkpoints(workdir)


def last_step(workdir: str | Path) -> int | None:
    """The step of the newest finished checkpoint of a workdir, whose files are not compared; None if there is none."""
    folder = Path(workdir) / "checkpoints"
    return max(_finished_steps(folder), default=None) if folder.is_dir() else None


def _finished_steps(folder: Path) -> list[int]:
    with_manifests = (folder / FORMAT).exists()
    return [step for step in steps_in(folder) if manifest.is_sealed(folder / str(step)) or not with_manifests]


def has_checkpoints(workdir: str | Path) -> bool:
    """Whether a training run has saved anything in a workdir."""
    folder = Path(workdir) / "checkpoints"
    return folder.is_dir() and bool(steps_in(folder))


def facts_of(folder: Path) -> dict[str, Any]:
    """What a checkpoint's manifest says of it; {} if it cannot be read, which whoever needs the checkpoint finds out."""
    try:
        return manifest.facts(folder)
    except manifest.DamageError:
        return {}


def scored_steps(
    folder: Path, steps: Iterable[int], scored_by: Mapping[str, Any] | None
) -> tuple[list[tuple[float, int]], list[int]]:
    """[(top-1, step), ...] of the checkpoints that were scored by this evaluation, and the steps of those scored by another.

    What is not known, of earlier versions or here, is taken for the same.
    """
    scored, others = [], []
    for step in steps:
        facts = facts_of(folder / str(step))
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


def find_step(folder: Path, which: str) -> int:
    """The step that "newest", "best" or a number means in a folder of checkpoints; its files have been checked."""
    if which == "newest":
        step = newest_step(folder.parent)
        if step is None:
            raise CheckpointError(f"{folder}: no complete checkpoint here; let the training run save one")
        return step
    there = _finished_steps(folder)
    if which == "best":
        latest = [facts for step in there if (facts := facts_of(folder / str(step))).get("top1") is not None]
        if not latest:
            raise CheckpointError(f"{folder}: no checkpoint here was evaluated, so none is the best; take the newest")
        scored, others = scored_steps(folder, there, latest[-1].get("scored_by"))
        say_what_is_not_compared(others)
        step = max(scored)[1]
    elif which.isascii() and which.isdigit():
        step = int(which)
    else:
        raise CheckpointError(f"checkpoint {which!r} is none of newest, best and a step's number")
    if step not in there:
        steps = ", ".join(map(str, there)) or "none"
        raise CheckpointError(f"{folder}: no complete checkpoint of step {step} here (there are: {steps})")
    if (folder / FORMAT).exists():
        try:
            manifest.check(folder / str(step))
        except manifest.DamageError as error:
            if not (folder / str(step)).is_dir():
                raise FileNotFoundError(step) from error  # deleted meanwhile by the run that is writing here
            raise CheckpointError(f"checkpoint {step} is DAMAGED: {error}; take another") from error
    return step
