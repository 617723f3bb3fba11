"""How images are made ready for a model: what exported weights say of themselves."""

from __future__ import annotations

import dataclasses

import flax.linen as nn

from deit_jax.models.protocol import fixed_image_size
from deit_jax.weights.errors import WeightsError

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

    def __post_init__(self) -> None:
        # Plain numbers, whatever arrays they came in: they are written as JSON.
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        object.__setattr__(self, "crop_ratio", float(self.crop_ratio))
        if not 0 < self.crop_ratio <= 1:
            raise WeightsError(f"crop_ratio={self.crop_ratio} is not above 0 and at most 1")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise WeightsError(f"mean={self.mean} and std={self.std} must be three numbers each, std above 0")

    def check(self, model: nn.Module) -> None:
        """Raises WeightsError if the images would not have the size that `model` takes."""
        own = fixed_image_size(model)
        if own is not None and self.image_size not in (None, own):
            raise WeightsError(f"preprocessing to {self.image_size} pixels for a model of {own}")

    def sides(self, model: nn.Module) -> tuple[int, int]:
        """Pixels of the shorter side after resizing, and of the crop, for `model`."""
        crop = (fixed_image_size(model) or 224) if self.image_size is None else self.image_size
        return int(crop / self.crop_ratio), crop
