"""The layouts of OpenMMLab's mmpretrain (DeiT), and of torchvision and pycls (RegNetY; read only)."""

from __future__ import annotations

import numpy as np

from deit_jax.weights.errors import WeightsError
from deit_jax.weights.files import Tensors
from deit_jax.weights.layout import Layout, Renaming, Translated

_MMPRETRAIN = Renaming(
    [
        ("cls_token", "backbone.cls_token"),
        ("dist_token", "backbone.dist_token"),
        ("pos_embed", "backbone.pos_embed"),
        ("patch_embed.proj.{leaf}", "backbone.patch_embed.projection.{leaf}"),
        ("blocks.{i}.norm1.{leaf}", "backbone.layers.{i}.ln1.{leaf}"),
        ("blocks.{i}.attn.qkv.{leaf}", "backbone.layers.{i}.attn.qkv.{leaf}"),
        ("blocks.{i}.attn.proj.{leaf}", "backbone.layers.{i}.attn.proj.{leaf}"),
        ("blocks.{i}.norm2.{leaf}", "backbone.layers.{i}.ln2.{leaf}"),
        ("blocks.{i}.mlp.fc1.{leaf}", "backbone.layers.{i}.ffn.layers.0.0.{leaf}"),
        ("blocks.{i}.mlp.fc2.{leaf}", "backbone.layers.{i}.ffn.layers.1.{leaf}"),
        ("norm.{leaf}", "backbone.ln1.{leaf}"),
        ("head.{leaf}", "head.layers.head.{leaf}"),
        ("head_dist.{leaf}", "head.layers.head_dist.{leaf}"),
    ]
)
_SIGN = r"backbone\.(layers\.\d+\.|patch_embed\.projection\.)"
MMPRETRAIN = Layout("mmpretrain", "mmpretrain", _SIGN, _MMPRETRAIN.to_timm, _MMPRETRAIN.from_timm)

_REGNET = ("stem.conv", "stem.bn", "head.fc")
_REGNET_BLOCK = (
    "conv1.conv", "conv1.bn", "conv2.conv", "conv2.bn", "conv3.conv", "conv3.bn", "se.fc1", "se.fc2", "downsample.conv",
    "downsample.bn",
)  # fmt: skip


def _regnet(names: str, block: str, block_names: str) -> Renaming:
    """Names of a RegNetY: the counterparts of `_REGNET`, the prefix of a block, and the counterparts of `_REGNET_BLOCK`."""
    pairs = list(zip(_REGNET, names.split(), strict=True))
    for ours, theirs in zip(_REGNET_BLOCK, block_names.split(), strict=True):
        pairs.append((f"s{{s}}.b{{n}}.{ours}", f"{block}.{theirs}"))
    return Renaming((f"{ours}.{{leaf}}", f"{theirs}.{{leaf}}") for ours, theirs in pairs)


_TORCHVISION = _regnet(
    "stem.0 stem.1 fc",
    "trunk_output.block{s}.block{s}-{n0}",
    "f.a.0 f.a.1 f.b.0 f.b.1 f.c.0 f.c.1 f.se.fc1 f.se.fc2 proj.0 proj.1",
)
# torchvision rounds widths so that none shrinks by more than a tenth; these two differ from pycls's and timm's networks.
_OTHER_NETS = {
    (64, 144, 320, 784): ("regnet_y_800mf", "regnety_008"),
    (224, 448, 896, 2016): ("regnet_y_8gf", "regnety_080"),
}


def _torchvision_to_timm(tensors: Tensors) -> Translated:
    renamed, unknown = _TORCHVISION.to_timm(tensors)
    scales = [renamed.get(f"s{stage}.b1.conv1.bn.weight") for stage in range(1, 5)]
    widths = tuple(len(scale) for scale in scales if scale is not None and scale.ndim == 1)
    if widths in _OTHER_NETS:
        theirs, ours = _OTHER_NETS[widths]
        raise WeightsError(
            f"torchvision's {theirs} (widths {', '.join(map(str, widths))}) is a different network from {ours}: torchvision "
            "rounds channel widths differently; use weights from timm or pycls"
        )
    return renamed, unknown


TORCHVISION = Layout(
    "torchvision", "torchvision", r"trunk_output\.block\d+\.", _torchvision_to_timm, _TORCHVISION.from_timm
)

_PYCLS = _regnet(
    "stem.conv stem.bn head.fc", "s{s}.b{n}", "f.a f.a_bn f.b f.b_bn f.c f.c_bn f.se.f_ex.0 f.se.f_ex.2 proj bn"
)
_STEM = "stem.conv.weight"


def _pycls_to_timm(tensors: Tensors) -> Translated:
    renamed, unknown = _PYCLS.to_timm(tensors)
    return _swap_channels(renamed), unknown


def _pycls_from_timm(tensors: Tensors) -> Tensors:
    return _PYCLS.from_timm(_swap_channels(tensors))


def _swap_channels(tensors: Tensors) -> Tensors:
    """Converts the first convolution, (out, in, h, w), between pycls's BGR input and RGB."""
    stem = tensors.get(_STEM)
    return tensors if stem is None or stem.ndim != 4 else tensors | {_STEM: np.flip(stem, axis=1)}


PYCLS = Layout("pycls", "pycls", r"s\d+\.b\d+\.f\.a\.", _pycls_to_timm, _pycls_from_timm)
