"""The frozen teacher of a run, and its accuracy on the evaluation images."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from deit_jax import console
from deit_jax.data.identity import Images
from deit_jax.data.sources import digest
from deit_jax.evaluation.accuracy import Scores
from deit_jax.models.protocol import (
    Features,
    classify,
    classify_with_features,
    fused_form,
    has_field,
    inference_form,
    on_mesh,
    with_dtype,
)
from deit_jax.parallel.distributed import from_main_process, is_main_process
from deit_jax.storage.files import UnreadableError
from deit_jax.storage.workdir import TEACHER_SCORES, Workdir, WorkdirError, WorkdirLike
from deit_jax.training.network_identity import NetworkIdentity
from deit_jax.training.state import Variables, count_parameters


@functools.partial(jax.tree_util.register_dataclass, data_fields=["variables"], meta_fields=["model"])
@dataclasses.dataclass(frozen=True)
class FrozenTeacher:
    """The teacher as an argument of the train step: a pytree of its variables, with the model as static data.

    The step uses only `logits`, and with features `logits_and_features`. Another kind of teacher is another pytree with these.
    """

    model: nn.Module
    variables: Variables

    def logits(self, images: jax.Array) -> jax.Array:
        """Returns float32[B, K] in the student's classes, for normalised images float[B, H, W, 3]."""
        return classify(self.model, self.variables, images).logits

    def logits_and_features(self, images: jax.Array, names: tuple[str, ...]) -> tuple[jax.Array, Features]:
        """Returns the logits, as `logits`, and the model's features of these names, from one forward pass."""
        output, features = classify_with_features(self.model, self.variables, images, names)
        return output.logits, features


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen network whose logits the student learns from."""

    model: nn.Module
    variables: Variables  # {"params": ..., and "batch_stats" if there are any}
    description: str  # for users: its name and the source of its weights
    num_parameters: int = 0  # number of parameters as trained
    networks: tuple[NetworkIdentity, ...] = ()  # recorded in the workdir
    fused: bool = False  # whether the step computes its `fused_form`

    def for_step(self, mesh: Mesh) -> FrozenTeacher:
        """Returns the teacher for a train step on `mesh`. The caller moves its variables to the mesh."""
        model = fused_form(self.model) if self.fused else self.model
        return FrozenTeacher(on_mesh(model, mesh), self.variables)


def teacher_digest(teacher: Teacher) -> str:
    """Returns a digest of the model and all weights, 32 hexadecimal digits."""
    return digest(repr(teacher.model).encode(), *map(np.asarray, jax.tree.leaves(teacher.variables)))


def freeze(model: nn.Module, variables: Variables, description: str, *, compute_dtype: str) -> Teacher:
    """Prepares a frozen teacher for inference: folds BatchNorm, and casts computation and kernels to `compute_dtype`."""
    count = count_parameters(variables)
    model, variables = inference_form(with_dtype(model, compute_dtype), variables)
    if has_field(model, "dtype"):
        variables = jax.tree.map(lambda leaf: leaf.astype(compute_dtype) if leaf.ndim > 1 else leaf, variables)
    return Teacher(model, variables, description, count)


def score_teacher(
    workdir: WorkdirLike, teacher: Teacher, measure: Callable[[], Scores], images: Images, protocol: Mapping[str, Any]
) -> Scores:
    """Returns the teacher's scores by head; measures them once per run for the same weights, images and protocol.

    measure: evaluates the teacher. images: the evaluation images. protocol: see `protocol_of`. All processes call it.
    """
    workdir = Workdir.at(workdir)
    weights = teacher_digest(teacher)
    key = {"teacher": weights, "images": images.images, "digest": images.digest, "protocol": dict(protocol)}
    scores: Scores | None = from_main_process(lambda: _stored_scores(workdir, key)) if images.digest else None
    note = ""
    if scores is not None:
        note = " (measured at an earlier start)"
    else:
        scores = measure()
        if is_main_process():
            # If this fails, a later start measures again; a full disk ends the run at its first checkpoint.
            with contextlib.suppress(WorkdirError):
                workdir.write_json(TEACHER_SCORES, {**key, "scores": scores})
    console.say(f"teacher's top-1 on the evaluation images: {scores['class']['top1']:.2f} %{note}")
    return scores


def _stored_scores(workdir: Workdir, key: Mapping[str, Any]) -> Scores | None:
    try:
        content = workdir.read_json(TEACHER_SCORES)
        return content.pop("scores") if all(content.get(name) == value for name, value in key.items()) else None
    except (UnreadableError, KeyError, AttributeError):  # AttributeError: there is no file
        return None
