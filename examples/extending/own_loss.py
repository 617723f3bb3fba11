"""A loss of your own: the student copies the teacher's logits, as they are or without their scale.

    PYTHONPATH=examples/extending python run.py --config=configs/quickstart.py --workdir=runs/matched \
        --config.plugins=own_loss --config.distillation.kind=logit_matching --config.logit_matching.weight=0.8
"""

import dataclasses

import jax
import jax.numpy as jnp

from deit_jax import register_loss


@dataclasses.dataclass(frozen=True)
class LogitMatching:
    """Cross-entropy of the class head, and the squared distance of the other head's logits from the teacher's."""

    weight: float = 0.5  # of the distance; these fields are config.logit_matching
    normalise: bool = True  # only the logits' pattern counts, not their scale

    def __call__(self, outputs, targets, teacher_logits):
        """Return the loss and what to log. All arguments are [batch, classes]."""
        token = outputs.distillation_logits  # None for a model without a distillation token
        student = outputs.class_logits if token is None else token
        labels = -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(outputs.class_logits), axis=-1))
        distance = jnp.mean((self.standard(student) - self.standard(teacher_logits)) ** 2)
        return (1 - self.weight) * labels + self.weight * distance, {"label_loss": labels, "distance": distance}

    def standard(self, logits):
        """The logits without their mean, and perhaps without their scale."""
        centred = logits - jnp.mean(logits, axis=-1, keepdims=True)
        return centred / (jnp.std(logits, axis=-1, keepdims=True) + 1e-6) if self.normalise else centred


register_loss("logit_matching", LogitMatching, needs_teacher=True, teaches_token=True)
