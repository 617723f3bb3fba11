"""The teacher's accuracy on the evaluation images: measured once, and kept in the workdir for later starts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from deit_jax import console
from deit_jax.data.identity import Images
from deit_jax.data.sources import digest
from deit_jax.evaluation.accuracy import Scores
from deit_jax.parallel.distributed import from_main_process, is_main_process
from deit_jax.storage.workdir import TEACHER_SCORES, UnreadableError, Workdir, WorkdirError, WorkdirLike
from deit_jax.training.teacher import Teacher


def score_teacher(
    workdir: WorkdirLike, teacher: Teacher, measure: Callable[[], Scores], images: Images, protocol: Mapping[str, Any]
) -> Scores:
    """The teacher's scores by head: those of an earlier start of the run if weights, images and protocol are the same.

    measure: evaluates the teacher. images: the evaluation images. protocol: as of `protocol_of`. All processes call it.
    """
    workdir = Workdir.at(workdir)
    key = {"teacher": _digest(teacher), "images": images.images, "digest": images.digest, "protocol": dict(protocol)}
    scores: Scores | None = from_main_process(lambda: _kept(workdir, key)) if images.digest else None
    kept = ""
    if scores is not None:
        kept = " (measured at an earlier start)"
    else:
        scores = measure()
        if is_main_process():
            # Else a later start measures again; a full disk stops the first checkpoint.
            with contextlib.suppress(WorkdirError):
                workdir.write_json(TEACHER_SCORES, {**key, "scores": scores})
    console.say(f"teacher's top-1 on the evaluation images: {scores['class']['top1']:.2f} %{kept}")
    return scores


def _kept(workdir: Workdir, key: Mapping[str, Any]) -> Scores | None:
    try:
        content = workdir.read_json(TEACHER_SCORES)
        return content.pop("scores") if all(content.get(name) == value for name, value in key.items()) else None
    except (UnreadableError, KeyError, AttributeError):  # None has no scores
        return None


def _digest(teacher: Teacher) -> str:
    """Of the model and all weights."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(teacher.variables)]
    return digest(repr(teacher.model).encode(), *leaves)
