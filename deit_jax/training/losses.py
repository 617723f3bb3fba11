"""DeiT's losses (arXiv 2012.12877, section 4) as pure functions of logits, and the loss that a configuration selects."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from deit_jax.config import OPTIONS, ConfigError
from deit_jax.config_features import FEATURE_LOSSES
from deit_jax.config_losses import loss_section
from deit_jax.config_model import has_distillation_token
from deit_jax.errors import first_line, raised_outside
from deit_jax.loss_kinds import loss_kind, loss_kinds
from deit_jax.models.protocol import ModelOutput, fuse

Metrics = dict[str, jax.Array]
# (outputs, targets float32[B, K], teacher_logits float32[B, K] or None) -> (loss, metrics): float32 scalars, including "loss"
# Recorded decisions int32[B] replace the logits if the kind is "hard".
Loss = Callable[[ModelOutput, jax.Array, jax.Array | None], tuple[jax.Array, Metrics]]

# Metrics that the step adds to those of the loss.
_OF_THE_STEP = ("grad_norm", "learning_rate", "worst_gradient", "nonfinite_gradients") + tuple(
    f"feature_{name}" for name in FEATURE_LOSSES
)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean over the batch of -sum(targets * log softmax(logits)), a float32 scalar.

    logits, targets: float32[B, K]. Targets may be smoothed or mixed labels, so label smoothing needs no separate loss.
    """
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1))


def hard_distillation(logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """Returns the cross-entropy with the teacher's unsmoothed argmax on the same mixed image (equation 3). Both float32[B, K].

    teacher_logits may also be recorded decisions, int32[B].
    """
    decision = decisions(teacher_logits)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), decision[:, None], axis=-1))


def decisions(teacher_logits: jax.Array) -> jax.Array:
    """The classes that a teacher decides for, int32[B], of its logits float32[B, K], or as they were recorded."""
    return jnp.argmax(teacher_logits, axis=-1) if teacher_logits.ndim == 2 else teacher_logits


def soft_distillation(logits: jax.Array, teacher_logits: jax.Array, *, tau: float, kl: str, kl_mean: str) -> jax.Array:
    """Returns tau^2 times the KL divergence at temperature tau (equation 2), a float32 scalar. Both float32[B, K].

    kl, the direction: "released" is KL(teacher || student) as in the published code, "paper" is KL(student || teacher) as in the
    equation. kl_mean, the divisor of the sum: "elements" is B * K (the published code; K times weaker), "batch" is B (the usual
    reading, and timm's). kl="paper" with kl_mean="batch" is the paper's loss.
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
    """(1 - alpha) * cross-entropy of the class head + alpha * the teacher's term; cross-entropy alone if kind is "none".

    With a distillation token the teacher's term applies to that token's head (Table 3, last rows); without one, to the class
    head (rows "usual" and "hard distillation"). Three kinds train a distillation token without a teacher: "labels" is section
    4's control, where the token's head learns the class head's targets; "labels_mean" is the cross-entropy of the mean of the
    two heads' logits, and "labels_class" that of the class head alone, both without alpha.

    Unlabelled rows have targets of zeros. `labelled_share` is the share of the batch's other rows: the cross-entropy is the mean
    over these, also where a batch is split into microbatches with different shares. The teacher's term is the mean over all rows.
    """

    kind: str = OPTIONS["distillation.kind"].default
    alpha: float = OPTIONS["distillation.alpha"].default
    tau: float = OPTIONS["distillation.tau"].default
    kl: str = OPTIONS["distillation.kl"].default
    kl_mean: str = OPTIONS["distillation.kl_mean"].default
    labelled_share: float = 1.0

    def __call__(
        self, outputs: ModelOutput, targets: jax.Array, teacher_logits: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        """Returns the loss, a float32 scalar, and its parts. targets, teacher_logits (or None): float32[B, K]."""
        kind = loss_kind(self.kind)
        if kind is None or kind.build is not None:
            raise ValueError(f"distillation kind {self.kind!r} is not one of {', '.join(loss_kinds())}")
        class_loss = cross_entropy(outputs.class_logits, targets)
        if self.labelled_share < 1:
            class_loss = class_loss / self.labelled_share
        if kind.needs_token and outputs.distillation_logits is None:
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
        else:
            distillation_loss = soft_distillation(
                student, teacher_logits, tau=self.tau, kl=self.kl, kl_mean=self.kl_mean
            )
        loss = (1 - self.alpha) * class_loss + self.alpha * distillation_loss
        agreement = jnp.mean(jnp.argmax(student, axis=-1) == decisions(teacher_logits))
        return loss, {
            "loss": loss,
            "class_loss": class_loss,
            "distillation_loss": distillation_loss,
            "teacher_agreement": agreement,
        }


def build_loss(config: ConfigDict, *, num_classes: int, labelled_share: float = 1.0) -> Loss:
    """Builds the loss that config.distillation.kind selects. Checks a plugin's loss by tracing it with abstract values.

    labelled_share: see `DistillationLoss`.

    Raises ConfigError if the registered loss cannot be built or does not return what `deit_jax.register_loss` requires.
    """
    kind, values = loss_kind(config.distillation.kind), loss_section(config)
    if kind is None or kind.build is None:
        return DistillationLoss(**values, labelled_share=labelled_share)
    where = f"config.distillation.kind={kind.name}"
    try:
        function = kind.build(**values)
    except Exception as error:
        raise ConfigError(f"config.{kind.name} ({_given(values)}): {raised_outside(error)}") from error
    if not callable(function):
        raise ConfigError(f"{where}: its `build` returns a {type(function).__name__}, not a function")
    loss, rows = _RegisteredLoss(where, function), config.train.batch_size // config.train.accumulation_steps
    logits: Any = jax.ShapeDtypeStruct((rows, num_classes), jnp.float32)
    outputs = ModelOutput(logits, logits, logits if has_distillation_token(config) else None)
    gradient = jax.value_and_grad(loss, has_aux=True)
    try:
        jax.eval_shape(gradient, outputs, logits, logits if kind.needs_teacher else None)
    except ConfigError:
        raise
    except Exception as error:  # not differentiable
        raise ConfigError(f"{where}: {first_line(error)}") from error
    return loss


@dataclasses.dataclass(frozen=True)
class _RegisteredLoss:
    """A plugin's loss whose result is checked during tracing; adds "loss" to its metrics."""

    where: str
    function: Callable[..., Any]

    def __call__(
        self, outputs: ModelOutput, targets: jax.Array, teacher_logits: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        try:
            result = self.function(outputs, targets, teacher_logits)
        except Exception as error:
            raise ConfigError(f"{self.where}: {raised_outside(error)}") from error
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)):
            wanted = "(loss, metrics), where metrics is a dict"
            raise ConfigError(f"{self.where}: the loss must return {wanted}; got {_shown(result)}")
        loss, metrics = result
        loss = self._scalar("the loss", loss)
        checked = {}
        for name, value in metrics.items():
            if not isinstance(name, str) or not name.isprintable() or not name:
                raise ConfigError(f"{self.where}: {name!r} is not a metric name; use a printable string")
            if name in _OF_THE_STEP:
                raise ConfigError(f"{self.where}: metric name {name!r} is reserved; use another name")
            checked[name] = self._scalar(f"the metric {name!r}", value, integers=True)
        return loss, checked | {"loss": loss}

    def _scalar(self, what: str, value: Any, *, integers: bool = False) -> jax.Array:
        try:
            array = jnp.asarray(value)
        except (TypeError, ValueError):
            raise ConfigError(f"{self.where}: {what} is {_shown(value)}; give a scalar") from None
        floating = jnp.issubdtype(array.dtype, jnp.floating)
        if array.shape or not (floating or (integers and not jnp.issubdtype(array.dtype, jnp.complexfloating))):
            wanted = "a scalar" if integers else "a floating-point scalar, e.g. the mean over the batch"
            raise ConfigError(f"{self.where}: {what} is {array.dtype}{list(array.shape)}; give {wanted}")
        return array.astype(jnp.float32)


def _given(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _shown(value: Any) -> str:
    if isinstance(value, jax.Array):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    return "None" if value is None else f"a {type(value).__name__}"
