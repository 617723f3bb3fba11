"""pycls's layout of RegNetY, read only. Its networks take BGR images, so the first convolution's input is reordered."""

from __future__ import annotations

import numpy as np

from deit_jax.weights.files import Tensors
from deit_jax.weights.layout import Layout, Renaming, Translated, rename_from_timm, rename_to_timm

_NAMES = Renaming(
    [
        ("stem.conv.{leaf}", "stem.conv.{leaf}"),
        ("stem.bn.{leaf}", "stem.bn.{leaf}"),
        *(
            (f"s{{s}}.b{{n}}.{ours}.{{leaf}}", f"s{{s}}.b{{n}}.f.{theirs}.{{leaf}}")
            for number, letter in enumerate("abc", start=1)
            for ours, theirs in ((f"conv{number}.conv", letter), (f"conv{number}.bn", f"{letter}_bn"))
        ),
        ("s{s}.b{n}.se.fc1.{leaf}", "s{s}.b{n}.f.se.f_ex.0.{leaf}"),
        ("s{s}.b{n}.se.fc2.{leaf}", "s{s}.b{n}.f.se.f_ex.2.{leaf}"),
        ("s{s}.b{n}.downsample.conv.{leaf}", "s{s}.b{n}.proj.{leaf}"),
        ("s{s}.b{n}.downsample.bn.{leaf}", "s{s}.b{n}.bn.{leaf}"),
        ("head.fc.{leaf}", "head.fc.{leaf}"),
    ]
)
_STEM = "stem.conv.weight"


def _to_timm(tensors: Tensors) -> Translated:
    renamed, strangers = rename_to_timm(tensors, _NAMES)
    return _with_other_channel_order(renamed), strangers


def _from_timm(tensors: Tensors) -> Tensors:
    return rename_from_timm(_with_other_channel_order(tensors), _NAMES)


def _with_other_channel_order(tensors: Tensors) -> Tensors:
    stem = tensors.get(_STEM)
    if stem is None or stem.ndim != 4:
        return tensors
    return tensors | {_STEM: np.flip(stem, axis=1)}  # (out, in, h, w): BGR to RGB, or back


LAYOUT = Layout("pycls", "pycls", r"s\d+\.b\d+\.f\.a\.", _to_timm, _from_timm)
