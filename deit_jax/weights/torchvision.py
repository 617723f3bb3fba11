"""torchvision's layout of RegNetY, read only."""

from __future__ import annotations

from deit_jax.weights.errors import WeightsError
from deit_jax.weights.files import Tensors
from deit_jax.weights.layout import Layout, Renaming, Translated, rename_from_timm, rename_to_timm

_BLOCK = "trunk_output.block{s}.block{s}-{n0}"
_NAMES = Renaming(
    [
        ("stem.conv.{leaf}", "stem.0.{leaf}"),
        ("stem.bn.{leaf}", "stem.1.{leaf}"),
        *(
            (f"s{{s}}.b{{n}}.{ours}.{{leaf}}", f"{_BLOCK}.{theirs}.{{leaf}}")
            for number, letter in enumerate("abc", start=1)
            for ours, theirs in ((f"conv{number}.conv", f"f.{letter}.0"), (f"conv{number}.bn", f"f.{letter}.1"))
        ),
        ("s{s}.b{n}.se.fc1.{leaf}", f"{_BLOCK}.f.se.fc1.{{leaf}}"),
        ("s{s}.b{n}.se.fc2.{leaf}", f"{_BLOCK}.f.se.fc2.{{leaf}}"),
        ("s{s}.b{n}.downsample.conv.{leaf}", f"{_BLOCK}.proj.0.{{leaf}}"),
        ("s{s}.b{n}.downsample.bn.{leaf}", f"{_BLOCK}.proj.1.{{leaf}}"),
        ("head.fc.{leaf}", "fc.{leaf}"),
    ]
)
# torchvision rounds widths so that none loses more than a tenth; in these two that is another net than pycls's and timm's.
_OTHER_NETS = {
    (64, 144, 320, 784): ("regnet_y_800mf", "regnety_008"),
    (224, 448, 896, 2016): ("regnet_y_8gf", "regnety_080"),
}


def _to_timm(tensors: Tensors) -> Translated:
    renamed, strangers = rename_to_timm(tensors, _NAMES)
    scales = [renamed.get(f"s{stage}.b1.conv1.bn.weight") for stage in range(1, 5)]
    widths = tuple(len(scale) for scale in scales if scale is not None and scale.ndim == 1)
    if widths in _OTHER_NETS:
        theirs, ours = _OTHER_NETS[widths]
        raise WeightsError(
            f"torchvision's {theirs} (widths {', '.join(map(str, widths))}) is another net than {ours}: torchvision rounds "
            "channel widths by a rule of its own; take these weights from timm or pycls"
        )
    return renamed, strangers


def _from_timm(tensors: Tensors) -> Tensors:
    return rename_from_timm(tensors, _NAMES)


LAYOUT = Layout("torchvision", "torchvision", r"trunk_output\.block\d+\.", _to_timm, _from_timm)
