"""The preprocessing that a weights file or folder declares: image size, crop ratio, normalisation and interpolation."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from deit_jax.weights.cards import CARD_NAMES, CENTER, SQUASH, Preprocessing
from deit_jax.weights.files import local_path, read_beside, read_metadata

METADATA_KEY = "preprocessing"  # key in the metadata of a .safetensors file from `save_weights`
_PIL_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


@dataclasses.dataclass(frozen=True)
class Declared:
    """What is declared next to weights; None or "" if it is not.

    image_size: pixels. crop_ratio: share of the resized shorter side that a centre crop keeps. mean, std: RGB in [0, 1].
    squash: the whole image is resized to a square, without a crop. other_crop: a crop that this package does not have, for
    a message.
    """

    image_size: int | None = None
    crop_ratio: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str = ""
    squash: bool = False
    other_crop: str = ""


def read_declared(path: str | os.PathLike[str]) -> Declared:
    """Returns the preprocessing that a weights file or folder declares.

    Reads the metadata of a .safetensors file that this project wrote, else the config.json of timm, transformers (with its
    preprocessor_config.json) or this package in the same folder. Invalid values count as not declared.
    """
    path = local_path(path)
    if path.suffix == ".safetensors" and isinstance(fields := read_metadata(path, METADATA_KEY), Mapping):
        return _of_our_fields(fields)
    card, processor = (read_beside(path, name) for name in CARD_NAMES)
    if card.get("library") == "deit_jax":
        return _of_our_fields(card)
    timm = card.get("pretrained_cfg", card)
    if isinstance(timm, Mapping) and "input_size" in timm:
        return _of_timm(timm)
    if "model_type" in card:
        return _of_transformers(card, processor)
    return Declared()


def metadata(image_size: int, preprocessing: Preprocessing | None) -> dict[str, str]:
    """Returns the metadata of a .safetensors file. preprocessing: None: only the size in pixels is known."""
    fields = {"image_size": image_size} if preprocessing is None else preprocessing.fields(image_size)
    return {METADATA_KEY: json.dumps(fields)}


def _of_our_fields(fields: Mapping[str, Any]) -> Declared:
    squash = fields.get("crop_mode") == SQUASH
    crop_ratio = None if squash else _ratio(fields.get("crop_pct"))
    mean, std = _rgb(fields.get("mean")), _rgb(fields.get("std"))
    return Declared(_pixels(fields.get("image_size")), crop_ratio, mean, std, squash=squash)


def _of_timm(fields: Mapping[str, Any]) -> Declared:
    size, interpolation = fields.get("input_size"), fields.get("interpolation")
    if not isinstance(size, list) or len(size) != 3 or size[1] != size[2]:
        size = [None, None, None]
    mode, crop_ratio = fields.get("crop_mode", CENTER), _ratio(fields.get("crop_pct"))
    squash = mode == SQUASH and crop_ratio == 1  # with a smaller one, timm crops the square
    return Declared(
        _pixels(size[1]),
        crop_ratio if mode == CENTER else None,
        _rgb(fields.get("mean")),
        _rgb(fields.get("std")),
        interpolation if isinstance(interpolation, str) else "",
        squash,
        "" if squash or mode == CENTER else f"crop_mode={mode!r}, crop_pct={crop_ratio}",
    )


def _of_transformers(card: Mapping[str, Any], processor: Mapping[str, Any]) -> Declared:
    image_size, size = _pixels(card.get("image_size")), processor.get("size")
    crop, shortest = _side(processor.get("crop_size")), _side(size)
    cropped = processor.get("do_center_crop", card["model_type"] != "vit")  # ViT's processor cannot crop
    crop_ratio = _ratio_of_sides(crop, shortest) if cropped is True else None
    square = not (isinstance(size, Mapping) and "shortest_edge" in size)
    squash = cropped is False and square and shortest is not None and shortest == image_size
    other = isinstance(size, int | Mapping) and not squash and crop_ratio is None
    normalised = processor.get("do_normalize", True) is True
    return Declared(
        image_size,
        crop_ratio,
        _rgb(processor.get("image_mean")) if normalised else None,
        _rgb(processor.get("image_std")) if normalised else None,
        _PIL_FILTERS.get(processor.get("resample", 3), ""),
        squash,
        f"size={json.dumps(size)}, do_center_crop={json.dumps(cropped)}" if other else "",
    )


def _side(size: Any) -> int | None:
    """Returns the pixels of transformers' `size`: 256, {"shortest_edge": 256} or {"height": 256, "width": 256}."""
    if isinstance(size, Mapping):
        sides = {size[name] for name in ("shortest_edge", "height", "width") if name in size}
        size = sides.pop() if len(sides) == 1 else None
    return _pixels(size)


def _ratio_of_sides(crop: int | None, shortest: int | None) -> float | None:
    """Returns a crop ratio for which int(crop / ratio) is `shortest`: a usual one, such as 0.875, if it is one."""
    if crop is None or shortest is None or crop > shortest:
        return None
    ratio = next((it for it in (0.875, 0.9, 0.95) if int(crop / it) == shortest), crop / shortest)
    return ratio if int(crop / ratio) == shortest else math.nextafter(ratio, 0)


def _pixels(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _ratio(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 < value <= 1 else None


def _rgb(value: Any) -> tuple[float, ...] | None:
    if isinstance(value, list) and len(value) == 3 and all(isinstance(it, int | float) for it in value):
        return tuple(float(it) for it in value)
    return None
