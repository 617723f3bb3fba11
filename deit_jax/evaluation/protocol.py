"""How evaluation images are made ready, for people and files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from deit_jax.data.decoding import Squash, evaluation_crop


def protocol_of(config: ConfigDict, image_size: int) -> dict[str, Any]:
    """How the images of an evaluation are made ready, in JSON's types: what an accuracy has to be told with."""
    crop = evaluation_crop(config.evaluation, image_size)
    squashed = isinstance(crop, Squash)
    return {
        "protocol": config.evaluation.protocol,
        "resize": [image_size, image_size] if squashed else int(image_size / crop.crop_ratio),  # else: the shorter side
        "crop": image_size,
        "crop_ratio": crop.crop_ratio,
        "interpolation": "bicubic, antialiased",
        "mean": [float(value) for value in config.augment.mean],
        "std": [float(value) for value in config.augment.std],
    }


def protocol_line(protocol: Mapping[str, Any]) -> str:
    """The protocol for people."""
    size, resize = protocol["crop"], protocol["resize"]
    resized = (
        f"shorter side to {resize}, centre {size}" if isinstance(resize, int) else f"whole image to {size} x {size}"
    )
    mean, std = (", ".join(f"{value:g}" for value in protocol[name]) for name in ("mean", "std"))
    return f"{protocol['protocol']}: {resized} ({protocol['interpolation']}); mean {mean}, std {std}"
