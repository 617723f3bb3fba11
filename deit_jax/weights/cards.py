"""The JSON files beside exported weights, from which timm and transformers build the model and prepare its images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from deit_jax.models.layer_norm import EPSILON
from deit_jax.models.protocol import family, fixed_image_size, is_distilled
from deit_jax.models.registry import identify
from deit_jax.weights.errors import WeightsError
from deit_jax.weights.preprocessing import Preprocessing

Card = dict[str, Any]
CARD_NAMES = ("config.json", "preprocessor_config.json")

# Our fields under the names of timm's model arguments.
_TIMM_ARGUMENTS = {"image_size": "img_size", "group_width": "group_size"}


def timm_cards(model: nn.Module, preprocessing: Preprocessing, class_names: Sequence[str] | None) -> dict[str, Card]:
    """config.json as timm's hub loader reads it: `timm.create_model("local-dir:FOLDER", pretrained=True)`."""
    is_vit = family(model) == "vit"
    if not is_vit:
        _refuse_what_timms_regnet_lacks(model)
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
        "crop_mode": "center",
        "interpolation": "bicubic",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "first_conv": "patch_embed.proj" if is_vit else "stem.conv",
        "classifier": heads if is_vit else "head.fc",
    }
    card: Card = {"architecture": architecture, "num_classes": model.num_classes, "pretrained_cfg": pretrained_cfg}
    if fields:
        card["model_args"] = {_TIMM_ARGUMENTS.get(name, name): value for name, value in fields.items()}
    if class_names is not None:
        card["label_names"] = [str(name) for name in class_names]
    return {"config.json": card}


def _refuse_what_timms_regnet_lacks(model: Any) -> None:
    stages = len(model.stages)
    if model.stem_stride != 2 or stages != 4:
        raise WeightsError(
            "timm builds RegNets of four stages and a stem of stride 2 only, this one has "
            f"{stages} and {model.stem_stride}; a path that ends in .safetensors gets the tensors alone"
        )


def huggingface_cards(model: Any, preprocessing: Preprocessing, class_names: Sequence[str] | None) -> dict[str, Card]:
    """config.json and preprocessor_config.json for transformers' from_pretrained(FOLDER), versions 4 and 5."""
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
        "hidden_act": "gelu",  # the exact one
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
        # DeiT's own processor of version 4 cannot keep the aspect ratio, ViT's cannot crop.
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": resized},
        "resample": 3,  # PIL's number of bicubic
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    return {"config.json": config, "preprocessor_config.json": processor}


def flax_cards(model: nn.Module, preprocessing: Preprocessing, class_names: Sequence[str] | None) -> dict[str, Card]:
    """config.json for this package's own layout: what the weights are of, and how their images are prepared."""
    _, side = preprocessing.sides(model)
    card: Card = {
        "library": "deit_jax",
        "module": type(model).__name__,
        "num_classes": model.num_classes,
        "image_size": side,
        "crop_pct": preprocessing.crop_ratio,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }
    if class_names is not None:
        card["label_names"] = [str(name) for name in class_names]
    return {"config.json": card}


def check_class_names(model: nn.Module, class_names: Sequence[str] | None) -> None:
    """Raises WeightsError if there is not one name for every class, or one name for two."""
    if class_names is None:
        return
    if isinstance(class_names, str):
        raise WeightsError(f"class_names={class_names!r} is one string: give a list of names, one a class")
    if len(class_names) != model.num_classes:
        raise WeightsError(f"{len(class_names)} class names for a model of {model.num_classes} classes")
    if len(set(class_names)) != len(class_names):
        raise WeightsError("two classes have the same name: class names must differ")
