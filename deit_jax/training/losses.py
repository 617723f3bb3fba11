"""DeiT's losses (arXiv 2012.12877, section 4): pure functions of logits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from deit_jax.models.output import ModelOutput, fuse

Metrics = dict[str, jax.Array]

TOKEN_LABELS = (
    "labels",
    "labels_mean",
    "labels_class",
)  # kinds without a teacher, for a model with a distillation token
KINDS = ("none", "soft", "hard", *TOKEN_LABELS)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean over the batch of -sum(targets * log softmax(logits)), a float32 scalar.

    logits, targets: float32[B, K]. Smoothed and mixed labels are such targets, so label smoothing needs no loss of its own.
    """
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1))


def hard_distillation(logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """Cross-entropy against the teacher's decision (equation 3): unsmoothed, for the same mixed image. Both float32[B, K]."""
    decision = jnp.argmax(teacher_logits, axis=-1)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), decision[:, None], axis=-1))


def soft_distillation(logits: jax.Array, teacher_logits: jax.Array, *, tau: float, kl: str, kl_mean: str) -> jax.Array:
    """tau^2 times the Kullback-Leibler divergence at temperature tau (equation 2), a float32 scalar. Both float32[B, K].

    kl, the direction: "released" is the published code's KL(teacher || student), "paper" the printed equation's
    KL(student || teacher). kl_mean, what the sum is divided by: "elements" is B * K (the published code; K times weaker), "batch"
    is B (the usual reading, and timm's). The paper is read as kl="paper", kl_mean="batch".
    """
    student = jax.nn.log_softmax(logits / tau)
    teacher = jax.nn.log_softmax(teacher_logits / tau)
    if kl == "released":
        terms = jnp.exp(teacher) * (teacher - student)
    elif kl == "paper":
        terms = jnp.exp(student) * (student - teacher)
    else:
        raise ValueError(f"kl={kl!r} is neither 'released' nor 'paper'")
    if kl_mean == "elements":
        return tau**2 * jnp.mean(terms)
    if kl_mean == "batch":
        return tau**2 * jnp.mean(jnp.sum(terms, axis=-1))
    raise ValueError(f"kl_mean={kl_mean!r} is neither 'elements' nor 'batch'")


@dataclasses.dataclass(frozen=True)
class DistillationLoss:
    """(1 - alpha) * cross-entropy of the class head + alpha * the teacher's term; the labels alone when kind is "none".

    With a distillation token the teacher's term reads that token's head (Table 3, last rows); without one it reads the class
    head (rows "usual" and "hard distillation"). Three kinds are for a distillation token without a teacher: "labels" is section
    4's control, the token's head learns the targets that the class head learns; "labels_mean" is the cross-entropy of the mean of
    the two heads' logits, and "labels_class" that of the class head alone, both without alpha.
    """

    kind: str = "none"  # none | soft | hard | labels | labels_mean | labels_class
    alpha: float = 0.5
    tau: float = 1.0
    kl: str = "released"
    kl_mean: str = "elements"

    def __call__(
        self, outputs: ModelOutput, targets: jax.Array, teacher_logits: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        """The loss, a float32 scalar, and its parts. targets: float32[B, K]; teacher_logits: float32[B, K] or None."""
        class_loss = cross_entropy(outputs.class_logits, targets)
        if self.kind in TOKEN_LABELS and outputs.distillation_logits is None:
            raise ValueError(f"distillation kind {self.kind!r} needs a model with a distillation token")
        if self.kind in ("none", "labels_class"):
            return class_loss, {"loss": class_loss, "class_loss": class_loss}
        if self.kind in ("labels", "labels_mean"):
            assert outputs.distillation_logits is not None
            token_loss = cross_entropy(outputs.distillation_logits, targets)
            if self.kind == "labels_mean":
                loss = cross_entropy(fuse(outputs.class_logits, outputs.distillation_logits, "logits"), targets)
            else:
                loss = (1 - self.alpha) * class_loss + self.alpha * token_loss
            return loss, {"loss": loss, "class_loss": class_loss, "distillation_loss": token_loss}
        if teacher_logits is None:
            raise ValueError(f"distillation kind {self.kind!r} needs a teacher's logits")
        student = outputs.class_logits if outputs.distillation_logits is None else outputs.distillation_logits
        if self.kind == "hard":
            distillation_loss = hard_distillation(student, teacher_logits)
        elif self.kind == "soft":
            distillation_loss = soft_distillation(
                student, teacher_logits, tau=self.tau, kl=self.kl, kl_mean=self.kl_mean
            )
        else:
            raise ValueError(f"distillation kind {self.kind!r} is none of {', '.join(KINDS)}")
        loss = (1 - self.alpha) * class_loss + self.alpha * distillation_loss
        agreement = jnp.mean(jnp.argmax(student, axis=-1) == jnp.argmax(teacher_logits, axis=-1))
        return loss, {
            "loss": loss,
            "class_loss": class_loss,
            "distillation_loss": distillation_loss,
            "teacher_agreement": agreement,
        }
