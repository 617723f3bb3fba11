"""What a configuration's training will cost, from its definition alone."""

from __future__ import annotations

import functools
from typing import NamedTuple

from ml_collections import ConfigDict

from deit_jax.config import needs_teacher
from deit_jax.data.known_sets import KNOWN_SETS
from deit_jax.data.sampling import selected_positions
from deit_jax.models import create_model, native_image_size
from deit_jax.models.flops import forward_flops

# The hours' machine: an assumption, nothing measured.
DEVICES, PEAK_FLOPS, UTILISATION = 8, 312e12, 0.4
ASSUMPTION = "8 A100 at 40 % of their bfloat16 peak of 312 TFLOP/s"


class Cost(NamedTuple):
    """Of one training."""

    images: int  # that pass through the network, repeats and epochs counted
    student_flops: int  # of an image, forwards and backwards
    teacher_flops: int  # of an image, forwards; 0 without a teacher

    @property
    def exaflop(self) -> float:
        """10^18 floating-point operations in all."""
        return self.images * (self.student_flops + self.teacher_flops) / 1e18

    @property
    def hours(self) -> float:
        """On the machine of ASSUMPTION."""
        return self.exaflop * 1e18 / (DEVICES * PEAK_FLOPS * UTILISATION) / 3600


def training_cost(config: ConfigDict) -> Cost:
    """The cost of a configuration on one of KNOWN_SETS: model FLOPs (models/flops.py) of student and teacher.

    The backward pass counts as two forward passes whatever is frozen; augmentation, optimizer and evaluation do not count.
    """
    batch_size = config.train.batch_size
    steps_per_epoch = selected_positions(KNOWN_SETS[config.data.name].train_images) // batch_size
    image_size = config.image_size or native_image_size(config.model.name)
    teachers = config.teacher.name.split(",") if needs_teacher(config) else []
    return Cost(
        images=config.train.epochs * steps_per_epoch * batch_size,
        student_flops=3 * _forward_flops(config.model.name, config.num_classes, image_size),
        teacher_flops=sum(_forward_flops(name, config.num_classes, image_size) for name in teachers),
    )


@functools.cache
def _forward_flops(name: str, num_classes: int, image_size: int) -> int:
    return forward_flops(create_model(name, num_classes, image_size), image_size)
