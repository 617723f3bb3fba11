"""Shared by the golden models and ours: timm's names, weights computed from them, and photographs.

Weights are too large to be kept, so both sides compute them: every tensor of timm's state dict is filled by
`timm_tensor`, a function of its name and shape alone. This file needs NumPy and Pillow only, because
tests/golden/record_models.py imports it too.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

GOLDEN = Path(__file__).parents[1] / "golden"
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
SMALL_PART = (slice(57, 281), slice(134, 358))  # of the photograph: 224 pixels

# An additional golden model: changes of deit_small_distilled_patch16_224.
SMALL_VIT = {"image_size": 64, "patch_size": 8, "depth": 4, "num_classes": 10}
TOKENS = (0, 1, 2, 33, 65)  # the recorded tokens of its blocks
FULL_SIZE_TOKENS = (0, 1, 107)  # and of deit_tiny_distilled_patch16_224's
INITIAL_VITS = ("deit_tiny_distilled_patch16_224", "deit_small_distilled_patch16_224")  # recorded as initialised
QUANTILES = (0.001, 0.999)
TRAINED_STATISTICS = ("stem.bn", "s3.b2.conv2.bn", "s4.b1.downsample.bn")  # of regnety_002's train step


def timm_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 tensor for a name of timm's state dict: uniform noise seeded by the name, scaled by its role.

    The scales keep activations near 1 at any depth, so that softmax, GELU and gates are far from their linear ranges
    and an error in any tensor moves the logits. `RandomState.uniform` is bit-identical across NumPy versions.
    """
    noise = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1.0, 1.0, shape) * 3**0.5  # mean 0, variance 1
    fan_in = int(np.prod(shape[1:], dtype=np.int64))
    if name.endswith("running_var"):
        values = 1.0 + 0.4 * noise
    elif name.endswith(("running_mean", "bias")):
        values = 0.1 * noise
    elif name.endswith("conv3.bn.weight"):  # the residual branch, smaller than the shortcut
        values = 0.3 + 0.1 * noise
    elif len(shape) == 1:  # LayerNorm and BatchNorm scales
        values = 1.0 + 0.2 * noise
    elif name.endswith(("_token", "pos_embed")):
        values = 0.5 * noise
    elif len(shape) == 4 and ".se." in name:
        values = 0.6 * fan_in**-0.5 * noise
    elif len(shape) == 4 and not name.startswith("patch_embed"):  # convolutions before a ReLU
        values = (2.0 / fan_in) ** 0.5 * noise
    elif name.endswith("qkv.weight"):
        values = 1.2 * fan_in**-0.5 * noise
    else:
        values = fan_in**-0.5 * noise
    return values.astype(np.float32)


def our_name(name: str, ndim: int) -> tuple[str, ...] | None:
    """The path of our variable for timm's name, collection first; None if we do not have it (`num_batches_tracked`)."""
    *path, leaf = re.sub(r"\bblocks\.(\d+)", r"blocks_\1", name).split(".")
    if leaf == "num_batches_tracked":
        return None
    if leaf.startswith("running_"):
        return ("batch_stats", *path, leaf.removeprefix("running_"))
    if leaf == "weight":
        leaf = "scale" if ndim == 1 else "kernel"
    return ("params", *path, leaf)


def our_layout(name: str, tensor: np.ndarray) -> np.ndarray:
    """timm's tensor in our axes: dense (out, in) to (in, out), convolutions OIHW to HWIO."""
    if name.endswith("weight") and tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    if name.endswith("weight") and tensor.ndim == 2:
        return tensor.T
    return tensor


def our_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[tuple[str, ...], tuple[int, ...]]:
    """timm's names and shapes as ours."""
    paths = {}
    for name, shape in shapes.items():
        path = our_name(name, len(shape))
        if path is not None:
            paths[path] = our_layout(name, np.broadcast_to(np.float32(0), shape)).shape
    return paths


def our_variables(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """The variables of our model for a golden model with timm's names and shapes."""
    variables: dict = {}
    for name, shape in shapes.items():
        path = our_name(name, len(shape))
        if path is None:
            continue
        node = variables
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = np.ascontiguousarray(our_layout(name, timm_tensor(name, tuple(shape))))
    return variables


def state_dict_shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """timm's state dicts as recorded: model name to tensor name to shape."""
    with gzip.open(GOLDEN / "models_state_dicts.json.gz", "rt") as file:
        recorded = json.load(file)
    return {model: {name: tuple(shape) for name, shape in tensors.items()} for model, tensors in recorded.items()}


def model_images(name: str) -> np.ndarray:
    """Images for a named model: native size for a transformer (one image for base models), small for a RegNetY."""
    if name.startswith("regnety"):
        # 100 pixels give the odd sides 25, 13 and 7, where paddings differ most.
        return photographs(2, 100 if name == "regnety_002" else 64)
    return photographs(1 if "_base_" in name else 2, int(name[-3:]))


def photographs(count: int, size: int) -> np.ndarray:
    """Normalised float32[count, size, size, 3]: corners of the photograph, each rotated by another 90 degrees."""
    pixels = np.asarray(Image.open(GOLDEN / "models_photograph.png").convert("RGB"))
    if size <= 224:
        pixels = pixels[SMALL_PART]
    turned = np.stack([np.rot90(pixels, turns)[:size, :size] for turns in range(count)])
    return (turned.astype(np.float32) / np.float32(255) - MEAN) / STD
