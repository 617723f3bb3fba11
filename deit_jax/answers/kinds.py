"""What is recorded of a teacher's logits (the decision, the k largest, or all), and how it is restored for a loss."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from deit_jax.config import ConfigError, needs_logits

DECISIONS, LOGITS = "decisions", "logits"
NAMES = ("auto", DECISIONS, LOGITS)  # of config.teacher.record_as
MAX_CLASSES = 1 << 16  # a class is stored in 16 bits

Answers = dict[str, Any]  # arrays of a row each, as `AnswerKind.arrays` names them


@dataclasses.dataclass(frozen=True)
class AnswerKind:
    """What is recorded of the logits float32[B, K] of each image.

    Attributes:
        name: "decisions": the class of the largest logit; "logits".
        num_classes: K.
        top_k: of logits: the k largest, with their classes and the log-sum-exp of the rest at `tau`. None: all of them.
        tau: the temperature of the rest; None if all logits are recorded, or none.

    Raises:
        ConfigError: more classes than 16 bits can number.
    """

    name: str
    num_classes: int
    top_k: int | None = None
    tau: float | None = None

    def __post_init__(self) -> None:
        if self.num_classes > MAX_CLASSES:
            raise ConfigError(
                f"answers of {self.num_classes:,} classes cannot be recorded, at most {MAX_CLASSES:,}: let "
                "config.teacher.classes name those that the student has, or train with the live teacher"
            )

    @property
    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The type in a file and the shape of a row of each array, by name."""
        if self.name == DECISIONS:
            return {"decision": ("<u2", ())}
        if self.top_k is None:
            return {"logits": ("<f4", (self.num_classes,))}
        return {"logits": ("<f4", (self.top_k,)), "classes": ("<u2", (self.top_k,)), "rest": ("<f4", ())}

    @property
    def row_bytes(self) -> int:
        """The bytes of the answer to one image on disk."""
        return sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in self.arrays.values())

    def __str__(self) -> str:
        if self.name == DECISIONS:
            return "decisions"
        return "all logits" if self.top_k is None else f"the {self.top_k} largest logits, the rest at tau {self.tau:g}"

    def of_logits(self, logits: jax.Array) -> Answers:
        """Returns the answers for logits float32[B, K]. Of equal logits the class with the smaller number comes first."""
        if self.name == DECISIONS:
            return {"decision": jnp.argmax(logits, axis=-1).astype(jnp.uint16)}
        if self.top_k is None:
            return {"logits": logits.astype(jnp.float32)}
        assert self.tau is not None
        largest, classes = jax.lax.top_k(logits, self.top_k)
        scaled = jax.vmap(lambda row, at: row.at[at].set(-jnp.inf))(logits / self.tau, classes)
        rest = jax.nn.logsumexp(scaled, axis=-1)
        return {"logits": largest, "classes": classes.astype(jnp.uint16), "rest": rest}

    def decisions(self, answers: Answers) -> np.ndarray:
        """Returns the teacher's decisions, integers [...], from answers in host memory, [..., B] rows of any number of steps."""
        if self.name == DECISIONS:
            return answers["decision"]
        return answers["logits"].argmax(axis=-1) if self.top_k is None else answers["classes"][..., 0]

    def restored(self, answers: Answers, *, decisions: bool = False) -> jax.Array:
        """Returns what replaces the teacher's logits in a loss: logits float32[B, K], or decisions int32[B].

        decisions: return these. If only the k largest logits are recorded, the others are restored as equal, with their original
        sum of exponentials at `tau`, and none larger than the smallest recorded one.
        """
        if self.name == DECISIONS:
            return answers["decision"].astype(jnp.int32)
        if self.top_k is None:
            return jnp.argmax(answers["logits"], axis=-1) if decisions else answers["logits"]
        classes = answers["classes"].astype(jnp.int32)
        if decisions:
            return classes[:, 0]
        assert self.tau is not None
        even = self.tau * (answers["rest"] - math.log(self.num_classes - self.top_k))
        even = jnp.minimum(even, answers["logits"][:, -1])
        rows = jnp.broadcast_to(even[:, None], (len(even), self.num_classes))
        return jax.vmap(lambda row, at, value: row.at[at].set(value))(rows, classes, answers["logits"])

    def record(self) -> dict[str, Any]:
        """Returns the fields for answers.json; `AnswerKind(**record)` is the kind."""
        return dataclasses.asdict(self)


def recorded_kind(config: ConfigDict, num_classes: int) -> AnswerKind:
    """Returns what to record according to config.teacher.record_as and top_k.

    Raises ConfigError without a teacher, and if only some of the logits are to be recorded, but as decisions.
    """
    if not needs_logits(config):
        raise ConfigError(
            f"config.distillation.kind={config.distillation.kind} has no teacher whose answers could be recorded: set it to "
            "hard or soft"
        )
    record_as, top_k = config.teacher.record_as, config.teacher.top_k
    if record_as == DECISIONS and top_k is not None:
        raise ConfigError(
            f"config.teacher.top_k={top_k} is a number of logits, but config.teacher.record_as is {DECISIONS}: set it to "
            f"{LOGITS}, or config.teacher.top_k=None"
        )
    if record_as == DECISIONS or (record_as == "auto" and top_k is None and needs_decisions(config)):
        return AnswerKind(DECISIONS, num_classes)
    if top_k is None or top_k >= num_classes:
        return AnswerKind(LOGITS, num_classes)
    return AnswerKind(LOGITS, num_classes, top_k, float(config.distillation.tau))


def needs_decisions(config: ConfigDict) -> bool:
    """Returns whether the loss uses only the teacher's decisions."""
    return config.distillation.kind == "hard"


def check_kind(kind: AnswerKind, config: ConfigDict, where: object) -> None:
    """Raises ConfigError for answers from which the loss cannot be computed. where: names the answers."""
    loss = config.distillation.kind
    if needs_decisions(config):
        return
    if kind.name == DECISIONS:
        raise ConfigError(
            f"{where} holds decisions, config.distillation.kind={loss} needs logits: record them with "
            f"--config.teacher.record_as={LOGITS} (or with this kind of distillation)"
        )
    if loss == "soft" and kind.tau is not None and kind.tau != config.distillation.tau:
        raise ConfigError(
            f"{where} does not fit this run: distillation.tau: the answers have {kind.tau:g}, this run "
            f"{config.distillation.tau:g}; record them again at this tau, or all logits (config.teacher.top_k=None)"
        )
