"""A ConvMixer (arXiv 2201.09792), registered under a name that configurations can use for a student or a teacher.

    PYTHONPATH=examples/extending python run.py --config=configs/quickstart.py:no_teacher --workdir=runs/convmixer \
        --config.plugins=own_model --config.model.name=convmixer_tiny --config.model.overrides={} --config.model.drop_path_rate=0
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from deit_jax import register_model


class ConvMixer(nn.Module):
    """Patch embedding, then depthwise and pointwise convolutions: float[B, S, S, 3] to logits [B, num_classes]."""

    num_classes: int = 1000
    width: int = 64
    depth: int = 4
    kernel_size: int = 5
    patch_size: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, *, train=False):
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        patch, kernel = (self.patch_size,) * 2, (self.kernel_size,) * 2
        x = norm()(nn.gelu(nn.Conv(self.width, patch, strides=patch, dtype=self.dtype)(images)))
        for _ in range(self.depth):
            y = nn.Conv(self.width, kernel, feature_group_count=self.width, dtype=self.dtype)(x)
            x = x + norm()(nn.gelu(y))
            x = norm()(nn.gelu(nn.Conv(self.width, (1, 1), dtype=self.dtype)(x)))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x.mean(axis=(1, 2)))


register_model("convmixer_tiny", ConvMixer, fields={"width": 64, "depth": 4}, image_size=28)
