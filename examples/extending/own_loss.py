"""A custom loss: the student matches the teacher's logits, optionally without their scale.

    PYTHONPATH=examples/extending python run.py --config=configs/quickstart.py:soft --workdir=runs/matched \
        --config.plugins=own_loss --config.distillation.kind=logit_matching --config.logit_matching.weight=0.8
"""

import dataclasses

import jax
import jax.numpy as jnp

from deit_jax import register_loss


@dataclasses.dataclass(frozen=True)
class LogitMatching:
    """Cross-entropy of the class head, and the squared distance of the other head's logits from the teacher's."""

    weight: float = 0.5  # of the distance; the fields are those of config.logit_matching
    normalise: bool = True  # ignore the scale of the logits

    def __call__(self, outputs, targets, teacher_logits):
        """Returns the loss and the metrics to log. All arguments are [batch, classes]."""
        token = outputs.distillation_logits  # None for a model without a distillation token
        student = outputs.class_logits if token is None else token
        labels = -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(outputs.class_logits), axis=-1))
        distance = jnp.mean((self.standard(student) - self.standard(teacher_logits)) ** 2)
        return (1 - self.weight) * labels + self.weight * distance, {"label_loss": labels, "distance": distance}

    def standard(self, logits):
        """Returns the logits without their mean and, if configured, without their scale."""
        centred = logits - jnp.mean(logits, axis=-1, keepdims=True)
        return centred / (jnp.std(logits, axis=-1, keepdims=True) + 1e-6) if self.normalise else centred


register_loss("logit_matching", LogitMatching, needs_teacher=True, teaches_token=True)
