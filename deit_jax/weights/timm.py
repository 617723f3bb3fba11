"""timm's layout, also facebookresearch/deit's and that of the released RegNetY teacher; between it and our variables.

Our names are timm's with "/" for ".", `kernel` and `scale` for `weight`, and `blocks_<i>` for `blocks.<i>`. Dense kernels are
(in, out) here and (out, in) there, convolutions HWIO here and OIHW there.
"""

from __future__ import annotations

import re
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np
from einops import rearrange

from deit_jax.models.protocol import fixed_image_size, portable_form
from deit_jax.weights.files import Tensors
from deit_jax.weights.layout import Layout, Translated

COUNTERS = "num_batches_tracked"  # of PyTorch's BatchNorm; nothing reads them while the momentum is fixed


def _to_timm(tensors: Tensors) -> Translated:
    return dict(tensors), []


def _from_timm(tensors: Tensors) -> Tensors:
    counters = {
        name.removesuffix("running_mean") + COUNTERS: np.zeros((), np.int64)
        for name in tensors
        if name.endswith("running_mean")
    }
    return tensors | counters


LAYOUT = Layout("timm", "timm", r"(blocks\.\d+\.attn\.qkv|s\d+\.b\d+\.conv\d\.conv)\.", _to_timm, _from_timm)


def without_counters(tensors: Tensors, expected: Tensors) -> Tensors:
    """The tensors without the counters of the BatchNorms that the model has."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not (name.endswith(COUNTERS) and name.removesuffix(COUNTERS) + "running_mean" in expected)
    }


def fused(name: str) -> str:
    """The name of the joint projection for that of q, k or v alone (which timm has not)."""
    return re.sub(r"\.attn\.[qkv]\.", ".attn.qkv.", name)


def to_variables(tensors: Tensors) -> dict[str, Any]:
    """Our variables, float32 NumPy arrays, from tensors under timm's names."""
    return flax.traverse_util.unflatten_dict({_our_path(name): _our_axes(name, tensors[name]) for name in tensors})


def from_variables(variables: Any, dtype: Any = np.float32) -> Tensors:
    """Tensors under timm's names from our variables, as `dtype`; None keeps each leaf's."""
    flat = flax.traverse_util.flatten_dict(variables)
    return {_timm_name(path): _timm_axes(path, np.asarray(leaf, dtype)) for path, leaf in flat.items()}


def expected_tensors(model: nn.Module) -> Tensors:
    """timm's names for the model's tensors, with stand-ins of their shapes that take no memory."""
    image = jax.ShapeDtypeStruct((1, *input_size(model), 3), np.float32)
    model, _ = portable_form(model, {"params": {}})
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    return from_variables(jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes))


def input_size(model: nn.Module) -> tuple[int, int]:
    """Rows and columns of an image that the model takes; of a convnet, which takes any, 224."""
    side = fixed_image_size(model) or 224
    return side, side


def _our_path(name: str) -> tuple[str, ...]:
    *path, leaf = re.sub(r"\bblocks\.(\d+)", r"blocks_\1", name).split(".")
    if leaf.startswith("running_"):
        return ("batch_stats", *path, leaf.removeprefix("running_"))
    if leaf == "weight":
        leaf = "scale" if _is_norm(path) else "kernel"
    return ("params", *path, leaf)


def _is_norm(path: list[str]) -> bool:
    return path[-1] == "bn" or path[-1].startswith("norm")


def _timm_name(path: tuple[str, ...]) -> str:
    group, *names, leaf = path
    if group == "batch_stats":
        leaf = f"running_{leaf}"
    elif leaf in ("scale", "kernel"):
        leaf = "weight"
    return re.sub(r"\bblocks_(\d+)", r"blocks.\1", ".".join([*names, leaf]))


def _our_axes(name: str, tensor: np.ndarray) -> np.ndarray:
    tensor = np.asarray(tensor, np.float32)
    if name.endswith(".weight") and tensor.ndim > 1:
        tensor = rearrange(tensor, "o i -> i o" if tensor.ndim == 2 else "o i h w -> h w i o")
    return np.ascontiguousarray(tensor)


def _timm_axes(path: tuple[str, ...], tensor: np.ndarray) -> np.ndarray:
    if path[-1] != "kernel":
        return tensor
    return rearrange(tensor, "i o -> o i" if tensor.ndim == 2 else "h w i o -> o i h w")
