"""The layout of Hugging Face transformers: ViT for the plain models, DeiT-with-teacher for the distilled ones.

Written with the names that both version 4 and version 5 read; read with those, with the names of version 5's modules, with either
prefix or (a backbone) none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from deit_jax.weights.errors import WeightsError, shown
from deit_jax.weights.files import Tensors
from deit_jax.weights.layout import Layout, Renaming, Translated, rename_from_timm, rename_to_timm

_COMMON = [
    ("cls_token", "embeddings.cls_token"),
    ("dist_token", "embeddings.distillation_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.{leaf}", "embeddings.patch_embeddings.projection.{leaf}"),
    ("norm.{leaf}", "layernorm.{leaf}"),
]
# q, k and v have no name in timm, which joins them; they are called attn.q, attn.k, attn.v in between.
_VERSION_4 = [
    ("blocks.{i}.norm1.{leaf}", "encoder.layer.{i}.layernorm_before.{leaf}"),
    ("blocks.{i}.norm2.{leaf}", "encoder.layer.{i}.layernorm_after.{leaf}"),
    ("blocks.{i}.attn.q.{leaf}", "encoder.layer.{i}.attention.attention.query.{leaf}"),
    ("blocks.{i}.attn.k.{leaf}", "encoder.layer.{i}.attention.attention.key.{leaf}"),
    ("blocks.{i}.attn.v.{leaf}", "encoder.layer.{i}.attention.attention.value.{leaf}"),
    ("blocks.{i}.attn.proj.{leaf}", "encoder.layer.{i}.attention.output.dense.{leaf}"),
    ("blocks.{i}.mlp.fc1.{leaf}", "encoder.layer.{i}.intermediate.dense.{leaf}"),
    ("blocks.{i}.mlp.fc2.{leaf}", "encoder.layer.{i}.output.dense.{leaf}"),
]
_VERSION_5 = [
    ("blocks.{i}.norm1.{leaf}", "layers.{i}.layernorm_before.{leaf}"),
    ("blocks.{i}.norm2.{leaf}", "layers.{i}.layernorm_after.{leaf}"),
    ("blocks.{i}.attn.q.{leaf}", "layers.{i}.attention.q_proj.{leaf}"),
    ("blocks.{i}.attn.k.{leaf}", "layers.{i}.attention.k_proj.{leaf}"),
    ("blocks.{i}.attn.v.{leaf}", "layers.{i}.attention.v_proj.{leaf}"),
    ("blocks.{i}.attn.proj.{leaf}", "layers.{i}.attention.o_proj.{leaf}"),
    ("blocks.{i}.mlp.fc1.{leaf}", "layers.{i}.mlp.fc1.{leaf}"),
    ("blocks.{i}.mlp.fc2.{leaf}", "layers.{i}.mlp.fc2.{leaf}"),
]
_PLAIN_HEAD = [("head.{leaf}", "classifier.{leaf}")]
_HEADS = [("head.{leaf}", "cls_classifier.{leaf}"), ("head_dist.{leaf}", "distillation_classifier.{leaf}")]


def _prefixed(prefix: str, *tables: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(timm, prefix + theirs) for table in tables for timm, theirs in table]


_READ = Renaming(_COMMON + _VERSION_4 + _VERSION_5 + _PLAIN_HEAD + _HEADS)
_READ_4, _READ_5 = Renaming(_VERSION_4), Renaming(_VERSION_5)
_WRITE_PLAIN = Renaming(_prefixed("vit.", _COMMON, _VERSION_4) + _PLAIN_HEAD)
_WRITE_DISTILLED = Renaming(_prefixed("deit.", _COMMON, _VERSION_4) + _HEADS)
_PARTS = ("q", "k", "v")


def _to_timm(tensors: Tensors) -> Translated:
    foreign = {_without_prefix(name): name for name in tensors}
    if len(foreign) < len(tensors):
        twice = next(name for name in tensors if foreign[_without_prefix(name)] != name)
        raise WeightsError(f"{shown(twice)} is there with two prefixes: the file mixes two layouts")
    named, strangers = rename_to_timm({bare: tensors[name] for bare, name in foreign.items()}, _READ)
    for name in sorted(named):
        match = re.fullmatch(r"(blocks\.\d+\.attn\.)q(\..+)", name)
        if match is None:
            continue
        thirds = [match[1] + part + match[2] for part in _PARTS]
        # Thirds that do not fit together are left apart, to be told of by their own names.
        if all(it in named and named[it].shape == named[name].shape and named[it].ndim for it in thirds):
            named[f"{match[1]}qkv{match[2]}"] = np.concatenate([named.pop(it) for it in thirds])
    return named, [foreign[name] for name in strangers]


def _without_prefix(name: str) -> str:
    return re.sub(r"^(vit|deit)\.", "", name)


def _spelled_as(name: str, names: Iterable[str]) -> str:
    """One of the names that we write, in the spelling (version and prefix) of a file with `names`."""
    names = list(names)
    if any(re.match(r"((vit|deit)\.)?layers\.\d+\.", it) for it in names):
        bare = _without_prefix(name)
        ours = _READ_4.ours(bare)
        new = _READ_5.theirs(ours) if ours else None
        name = name.replace(bare, new) if new else name
    prefix = next((it for it in ("vit.", "deit.") if any(other.startswith(it) for other in names)), "")
    return re.sub(r"^(vit|deit)\.", prefix, name)


def _from_timm(tensors: Tensors) -> Tensors:
    apart: Tensors = {}
    for name, tensor in tensors.items():
        if ".attn.qkv." in name:
            apart |= {name.replace("qkv", part): third for part, third in zip(_PARTS, np.split(tensor, 3), strict=True)}
        else:
            apart[name] = tensor
    distilled = any(name.startswith(("dist_token", "head_dist.")) for name in tensors)
    return rename_from_timm(apart, _WRITE_DISTILLED if distilled else _WRITE_PLAIN)


LAYOUT = Layout(
    "hf",
    "Hugging Face transformers",
    r"((vit|deit)\.)?embeddings\.(patch_embeddings|position_embeddings)",
    _to_timm,
    _from_timm,
    _spelled_as,
)
