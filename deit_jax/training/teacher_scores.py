"""The teacher's accuracy on the evaluation images: measured once, and kept in the workdir for later starts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deit_jax.data.identity import Images
from deit_jax.data.sources import digest
from deit_jax.evaluation.accuracy import Scores
from deit_jax.parallel.distributed import from_main_process, is_main_process
from deit_jax.reporting import console
from deit_jax.reporting.metrics import write_json
from deit_jax.training.program import Teacher

NAME = "teacher_scores.json"


def score_teacher(
    workdir: Path, teacher: Teacher, measure: Callable[[], Scores], images: Images, protocol: Mapping[str, Any]
) -> Scores:
    """The teacher's scores by head: those of an earlier start of the run if weights, images and protocol are the same.

    measure: evaluates the teacher. images: the evaluation images. protocol: as of `protocol_of`. All processes call it.
    """
    path = workdir / NAME
    key = {"teacher": _digest(teacher), "images": images.images, "digest": images.digest, "protocol": dict(protocol)}
    scores: Scores | None = from_main_process(lambda: _kept(path, key)) if images.digest else None
    kept = ""
    if scores is not None:
        kept = " (measured at an earlier start)"
    else:
        scores = measure()
        if is_main_process():
            with contextlib.suppress(
                OSError
            ):  # then a later start measures again; a full disk stops the first checkpoint
                write_json(path, {**key, "scores": scores})
    console.say(f"teacher's top-1 on the evaluation images: {scores['class']['top1']:.2f} %{kept}")
    return scores


def _kept(path: Path, key: Mapping[str, Any]) -> Scores | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content.pop("scores") if all(content.get(name) == value for name, value in key.items()) else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _digest(teacher: Teacher) -> str:
    """Of the model and all weights."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(teacher.variables)]
    return digest(repr(teacher.model).encode(), *leaves)
