"""The layout of Hugging Face transformers: ViT for the plain models, DeiT-with-teacher for the distilled ones.

Writes the names that versions 4 and 5 read. Reads those and the names of version 5's modules, with either prefix or (a backbone)
none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from deit_jax.weights.errors import WeightsError, shown
from deit_jax.weights.files import Tensors
from deit_jax.weights.layout import Layout, Renaming, Translated

_COMMON = [
    ("cls_token", "embeddings.cls_token"),
    ("dist_token", "embeddings.distillation_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.{leaf}", "embeddings.patch_embeddings.projection.{leaf}"),
    ("norm.{leaf}", "layernorm.{leaf}"),
]
# timm fuses q, k and v; here they are called attn.q, attn.k, attn.v until they are joined.
_BLOCK = (  # timm, version 4, version 5
    ("norm1", "layernorm_before", "layernorm_before"),
    ("norm2", "layernorm_after", "layernorm_after"),
    ("attn.q", "attention.attention.query", "attention.q_proj"),
    ("attn.k", "attention.attention.key", "attention.k_proj"),
    ("attn.v", "attention.attention.value", "attention.v_proj"),
    ("attn.proj", "attention.output.dense", "attention.o_proj"),
    ("mlp.fc1", "intermediate.dense", "mlp.fc1"),
    ("mlp.fc2", "output.dense", "mlp.fc2"),
)
_VERSION_4 = [(f"blocks.{{i}}.{timm}.{{leaf}}", f"encoder.layer.{{i}}.{v4}.{{leaf}}") for timm, v4, _ in _BLOCK]
_VERSION_5 = [(f"blocks.{{i}}.{timm}.{{leaf}}", f"layers.{{i}}.{v5}.{{leaf}}") for timm, _, v5 in _BLOCK]
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
        raise WeightsError(f"{shown(twice)} occurs with two prefixes: the file mixes two layouts")
    named, unknown = _READ.to_timm({bare: tensors[name] for bare, name in foreign.items()})
    for name in sorted(named):
        match = re.fullmatch(r"(blocks\.\d+\.attn\.)q(\..+)", name)
        if match is None:
            continue
        thirds = [match[1] + part + match[2] for part in _PARTS]
        # Thirds of different shapes stay separate, so that errors show their own names.
        if all(it in named and named[it].shape == named[name].shape and named[it].ndim for it in thirds):
            named[f"{match[1]}qkv{match[2]}"] = np.concatenate([named.pop(it) for it in thirds])
    return named, [foreign[name] for name in unknown]


def _without_prefix(name: str) -> str:
    return re.sub(r"^(vit|deit)\.", "", name)


def _spelled_as(name: str, names: Iterable[str]) -> str:
    """Returns a name that we write in the spelling (version and prefix) of a file with `names`."""
    names = list(names)
    if any(re.match(r"((vit|deit)\.)?layers\.\d+\.", it) for it in names):
        bare = _without_prefix(name)
        ours = _READ_4.ours(bare)
        new = _READ_5.theirs(ours) if ours else None
        name = name.replace(bare, new) if new else name
    prefix = next((it for it in ("vit.", "deit.") if any(other.startswith(it) for other in names)), "")
    return re.sub(r"^(vit|deit)\.", prefix, name)


def _from_timm(tensors: Tensors) -> Tensors:
    separate: Tensors = {}
    for name, tensor in tensors.items():
        if ".attn.qkv." in name:
            thirds = zip(_PARTS, np.split(tensor, 3), strict=True)
            separate |= {name.replace("qkv", part): third for part, third in thirds}
        else:
            separate[name] = tensor
    distilled = any(name.startswith(("dist_token", "head_dist.")) for name in tensors)
    return (_WRITE_DISTILLED if distilled else _WRITE_PLAIN).from_timm(separate)


LAYOUT = Layout(
    "hf",
    "Hugging Face transformers",
    r"((vit|deit)\.)?embeddings\.(patch_embeddings|position_embeddings)",
    _to_timm,
    _from_timm,
    _spelled_as,
)
