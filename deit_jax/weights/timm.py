"""timm's layout, which facebookresearch/deit and the released RegNetY teacher share, and conversion to Flax variables.

Flax names are timm's with "/" for ".", `kernel` and `scale` for `weight`, and `blocks_<i>` for `blocks.<i>`. Dense kernels are
(in, out) in Flax and (out, in) in timm; convolutions are HWIO in Flax and OIHW in timm.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np
from einops import rearrange

from deit_jax.models.protocol import initial_variables, input_size, portable_form
from deit_jax.weights.files import Tensors
from deit_jax.weights.layout import Layout

COUNTERS = "num_batches_tracked"  # a buffer of PyTorch's BatchNorm; unused with a fixed momentum


def _from_timm(tensors: Tensors) -> Tensors:
    counters = {
        name.removesuffix("running_mean") + COUNTERS: np.zeros((), np.int64)
        for name in tensors
        if name.endswith("running_mean")
    }
    return tensors | counters


_SIGN = r"(blocks\.\d+\.attn\.qkv|s\d+\.b\d+\.conv\d\.conv)\."
LAYOUT = Layout("timm", "timm", _SIGN, lambda tensors: (dict(tensors), []), _from_timm)


def without_counters(tensors: Tensors, expected: Tensors) -> Tensors:
    """Removes the counters of the model's BatchNorms."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not (name.endswith(COUNTERS) and name.removesuffix(COUNTERS) + "running_mean" in expected)
    }


def fused(name: str) -> str:
    """Returns the name of the fused projection for a name of q, k or v, which timm does not have."""
    return re.sub(r"\.attn\.[qkv]\.", ".attn.qkv.", name)


def to_variables(tensors: Tensors) -> dict[str, Any]:
    """Converts tensors under timm's names to Flax variables, float32 NumPy arrays."""
    return flax.traverse_util.unflatten_dict({_our_path(name): _our_axes(name, tensors[name]) for name in tensors})


def from_variables(variables: Any, dtype: Any = np.float32) -> Tensors:
    """Converts Flax variables to tensors under timm's names, as `dtype`; None keeps each leaf's."""
    flat = flax.traverse_util.flatten_dict(variables)
    return {_timm_name(path): _timm_axes(path, np.asarray(leaf, dtype)) for path, leaf in flat.items()}


def expected_tensors(model: nn.Module) -> Tensors:
    """Returns the model's tensors under timm's names, as placeholders of the right shapes that take no memory."""
    return from_variables(placeholders(portable_form(model, {"params": {}})[0]))


def placeholders(model: nn.Module) -> dict[str, Any]:
    """Returns variables of the model's shapes, float32 zeros that take no memory."""
    image = jax.ShapeDtypeStruct((1, *input_size(model), 3), np.float32)
    shapes = jax.eval_shape(functools.partial(initial_variables, model), jax.random.key(0), image)
    return jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), dict(shapes))


def _our_path(name: str) -> tuple[str, ...]:
    *path, leaf = re.sub(r"\bblocks\.(\d+)", r"blocks_\1", name).split(".")
    if leaf.startswith("running_"):
        return ("batch_stats", *path, leaf.removeprefix("running_"))
    if leaf == "weight":
        leaf = "scale" if path[-1] == "bn" or path[-1].startswith("norm") else "kernel"
    return ("params", *path, leaf)


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
