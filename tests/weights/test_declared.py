"""Preprocessing as timm's and transformers' own repositories declare it. Exports: tests/test_declared_sizes.py."""

import json

import pytest

from deit_jax.weights.cards import IMAGENET_MEAN, IMAGENET_STD
from deit_jax.weights.declared import Declared, read_declared

# The fields that matter here of timm/deit_tiny_patch16_224.fb_in1k, facebook/deit-tiny-patch16-224, google/vit-base-patch16-224.
TIMM = {
    "input_size": [3, 224, 224],
    "crop_pct": 0.9,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
DEIT = {
    "do_center_crop": True,
    "crop_size": 224,
    "do_normalize": True,
    "size": 256,
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
VIT = {
    "do_normalize": True,
    "do_resize": True,
    "size": 224,
    "resample": 2,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
IMAGENET, HALVES = (IMAGENET_MEAN, IMAGENET_STD), ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("card", "processor", "expected"),
    [
        ({"architecture": "a", "pretrained_cfg": TIMM}, None, Declared(224, 0.9, *IMAGENET, "bicubic")),
        ({"architecture": "a", **TIMM}, None, Declared(224, 0.9, *IMAGENET, "bicubic")),  # older repositories
        ({"model_type": "deit", "image_size": 224}, DEIT, Declared(224, 0.875, *IMAGENET, "bicubic")),
        ({"model_type": "vit", "image_size": 224}, VIT, Declared(224, None, *HALVES, "bilinear", squash=True)),
        (
            {"model_type": "vit", "image_size": 224},
            VIT | {"size": {"height": 224, "width": 224}, "do_center_crop": False},
            Declared(224, None, *HALVES, "bilinear", squash=True),
        ),
        (
            {"model_type": "vit", "image_size": 224},
            VIT | {"size": 256},
            Declared(224, None, *HALVES, "bilinear", other_crop="size=256, do_center_crop=false"),
        ),
        (
            {"model_type": "vit", "image_size": 224},
            VIT | {"size": {"shortest_edge": 224}},
            Declared(224, None, *HALVES, "bilinear", other_crop='size={"shortest_edge": 224}, do_center_crop=false'),
        ),
        (
            {"pretrained_cfg": TIMM | {"crop_mode": "squash", "crop_pct": 1.0}},
            None,
            Declared(224, None, *IMAGENET, "bicubic", squash=True),
        ),
        *(
            (
                {"pretrained_cfg": TIMM | {"crop_mode": mode}},
                None,
                Declared(224, None, *IMAGENET, "bicubic", other_crop=f"crop_mode={mode!r}, crop_pct=0.9"),
            )
            for mode in ("squash", "border")
        ),
        ({"model_type": "vit", "image_size": 224}, None, Declared(224, interpolation="bicubic")),
        (
            {"model_type": "deit", "image_size": 64},
            DEIT | {"size": {"shortest_edge": 73}, "crop_size": {"height": 64, "width": 64}},
            Declared(64, 0.875, *IMAGENET, "bicubic"),
        ),
        ({"pretrained_cfg": {"input_size": [3, 224, 192], "crop_pct": 1.5, "mean": "?"}}, None, Declared()),
        ({"model_type": "vit", "image_size": [224, 224]}, {"size": []}, Declared(interpolation="bicubic")),
        ({"config": {"image_size": 64}, "resolved": {"image_size": 64}}, None, Declared()),  # a run's
        ([1], None, Declared()),
        (None, None, Declared()),
    ],
)
def test_cards(tmp_path, card, processor, expected):
    for name, content in (("config.json", card), ("preprocessor_config.json", processor)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    assert read_declared(tmp_path) == expected == read_declared(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize(("crop", "shortest"), [(64, 73), (224, 235), (224, 256), (49, 55), (384, 438), (384, 384)])
def test_the_crop_ratio_gives_the_declared_side(tmp_path, crop, shortest):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deit", "image_size": crop}))
    processor = DEIT | {"size": {"shortest_edge": shortest}, "crop_size": {"height": crop, "width": crop}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    ratio = read_declared(tmp_path).crop_ratio
    assert int(crop / ratio) == shortest
