"""Preprocessing of images, and the JSON files that record it and the model next to exported weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from deit_jax.models.layers import EPSILON
from deit_jax.models.protocol import family, fixed_image_size, input_size, is_distilled
from deit_jax.models.registry import identify
from deit_jax.weights.errors import WeightsError

Card = dict[str, Any]
CARD_NAMES = ("config.json", "preprocessor_config.json")

# Our fields under the names of timm's model arguments.
_TIMM_ARGUMENTS = {"image_size": "img_size", "group_width": "group_size"}

CENTER, SQUASH = "center", "squash"  # timm's names: a crop of the centre; the whole image as a square
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side to int(image_size / crop_ratio) by antialiased bicubic, crop the centre, normalise RGB in [0, 1].

    The defaults are the reference's evaluation. image_size is in pixels; None: the model's own, 224 for a convnet. squash: resize
    the whole image to a square instead, ignoring its aspect ratio; crop_ratio is then 1.
    """

    image_size: int | None = None
    crop_ratio: float = 0.875
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    squash: bool = False

    def __post_init__(self) -> None:
        # Arrays become plain numbers, because they are written as JSON.
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        object.__setattr__(self, "crop_ratio", 1.0 if self.squash else float(self.crop_ratio))
        if not 0 < self.crop_ratio <= 1:
            raise WeightsError(f"crop_ratio={self.crop_ratio} is not above 0 and at most 1")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise WeightsError(f"mean={self.mean} and std={self.std} must be three numbers each, std above 0")

    def check(self, model: nn.Module) -> None:
        """Raises WeightsError if the image size is not the one that `model` needs."""
        own = fixed_image_size(model)
        if own is not None and self.image_size not in (None, own):
            raise WeightsError(f"preprocessing to {self.image_size} pixels for a model of {own}")

    def sides(self, model: nn.Module) -> tuple[int, int]:
        """Returns the pixels of the shorter side after resizing, and of the crop, for `model`."""
        crop = input_size(model)[0] if self.image_size is None else self.image_size
        return int(crop / self.crop_ratio), crop

    def fields(self, image_size: int) -> Card:
        """Returns what this package's own config.json and the metadata of a .safetensors file declare, in JSON types."""
        fields: Card = {
            "image_size": image_size,
            "crop_pct": self.crop_ratio,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        return fields | ({"crop_mode": SQUASH} if self.squash else {})


def timm_cards(model: nn.Module, preprocessing: Preprocessing, class_names: Sequence[str] | None) -> dict[str, Card]:
    """Returns config.json for timm's hub loader: `timm.create_model("local-dir:FOLDER", pretrained=True)`."""
    is_vit = family(model) == "vit"
    if not is_vit:
        _check_timm_regnet(model)
    architecture, fields = identify(model)
    _, side = preprocessing.sides(model)
    heads = ["head", "head_dist"] if is_distilled(model) else "head"
    pretrained_cfg = {
        "tag": "deit_jax",
        "num_classes": model.num_classes,
        "input_size": [3, side, side],
        "fixed_input_size": fixed_image_size(model) is not None,
        "pool_size": None,
        "crop_pct": preprocessing.crop_ratio,
        "crop_mode": SQUASH if preprocessing.squash else CENTER,
        "interpolation": "bicubic",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "first_conv": "patch_embed.proj" if is_vit else "stem.conv",
        "classifier": heads if is_vit else "head.fc",
    }
    card: Card = {"architecture": architecture, "num_classes": model.num_classes, "pretrained_cfg": pretrained_cfg}
    if fields:
        card["model_args"] = {_TIMM_ARGUMENTS.get(name, name): value for name, value in fields.items()}
    return {"config.json": card | _label_names(class_names)}


def _label_names(class_names: Sequence[str] | None) -> Card:
    return {} if class_names is None else {"label_names": [str(name) for name in class_names]}


def _check_timm_regnet(model: Any) -> None:
    stages = len(model.stages)
    if model.stem_stride != 2 or stages != 4:
        raise WeightsError(
            "timm builds RegNets of four stages and a stem of stride 2 only, this one has "
            f"{stages} and {model.stem_stride}; give a path that ends in .safetensors to write only the tensors"
        )


def huggingface_cards(model: Any, preprocessing: Preprocessing, class_names: Sequence[str] | None) -> dict[str, Card]:
    """Returns config.json and preprocessor_config.json for transformers' from_pretrained(FOLDER), versions 4 and 5."""
    names = [f"LABEL_{i}" for i in range(model.num_classes)] if class_names is None else [str(it) for it in class_names]
    resized, side = preprocessing.sides(model)
    config = {
        "architectures": ["DeiTForImageClassificationWithTeacher" if model.distilled else "ViTForImageClassification"],
        "model_type": "deit" if model.distilled else "vit",
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "num_channels": 3,
        "hidden_size": model.embed_dim,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": int(model.embed_dim * model.mlp_ratio),
        "hidden_act": "gelu",  # exact
        "layer_norm_eps": EPSILON,  # transformers' default is 1e-12
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "encoder_stride": model.patch_size,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
    processor = {
        # Version 4's DeiT processor cannot keep the aspect ratio, ViT's cannot crop.
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side} if preprocessing.squash else {"shortest_edge": resized},
        "resample": 3,  # PIL's bicubic
        "do_center_crop": not preprocessing.squash,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    return {"config.json": config, "preprocessor_config.json": processor}


def flax_cards(model: nn.Module, preprocessing: Preprocessing, class_names: Sequence[str] | None) -> dict[str, Card]:
    """Returns config.json for this package's own layout: model and preprocessing."""
    _, side = preprocessing.sides(model)
    card: Card = {
        "library": "deit_jax",
        "module": type(model).__name__,
        "num_classes": model.num_classes,
        **preprocessing.fields(side),
    }
    return {"config.json": card | _label_names(class_names)}


def check_class_names(model: nn.Module, class_names: Sequence[str] | None) -> None:
    """Raises WeightsError unless there is one distinct name per class."""
    if class_names is None:
        return
    if isinstance(class_names, str):
        raise WeightsError(f"class_names={class_names!r} is one string: give a list of names, one per class")
    if len(class_names) != model.num_classes:
        raise WeightsError(f"{len(class_names)} class names for a model of {model.num_classes} classes")
    if len(set(class_names)) != len(class_names):
        raise WeightsError("two classes have the same name: class names must differ")
