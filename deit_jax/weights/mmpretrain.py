"""The layout of OpenMMLab's mmpretrain (its DeiT models; it has no RegNetY)."""

from __future__ import annotations

from deit_jax.weights.files import Tensors
from deit_jax.weights.layout import Layout, Renaming, Translated, rename_from_timm, rename_to_timm

_NAMES = Renaming(
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


def _to_timm(tensors: Tensors) -> Translated:
    return rename_to_timm(tensors, _NAMES)


def _from_timm(tensors: Tensors) -> Tensors:
    return rename_from_timm(tensors, _NAMES)


LAYOUT = Layout(
    "mmpretrain", "mmpretrain", r"backbone\.(layers\.\d+\.|patch_embed\.projection\.)", _to_timm, _from_timm
)
