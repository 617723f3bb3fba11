"""How images are made ready for a model: what exported weights say of themselves."""

from __future__ import annotations

import dataclasses

import flax.linen as nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side to int(image_size / crop_ratio) by antialiased bicubic, crop the centre, normalise RGB in [0, 1].

    The defaults are the reference's evaluation. image_size in pixels; None: the model's own, of a convnet 224.
    """

    image_size: int | None = None
    crop_ratio: float = 0.875
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def sides(self, model: nn.Module) -> tuple[int, int]:
        """Pixels of the shorter side after resizing, and of the crop, for `model`."""
        crop = self.image_size or getattr(model, "image_size", 224)
        return int(crop / self.crop_ratio), crop
