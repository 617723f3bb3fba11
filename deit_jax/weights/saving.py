"""Our variables as files that other frameworks open."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn

from deit_jax.models.vit import VisionTransformer
from deit_jax.weights import huggingface, mmpretrain, timm
from deit_jax.weights.cards import Card, check_class_names, huggingface_cards, timm_cards
from deit_jax.weights.errors import MisfitError, WeightsError, listed
from deit_jax.weights.files import Tensors, write_file
from deit_jax.weights.layout import compare
from deit_jax.weights.preprocessing import Preprocessing

LAYOUTS = {layout.name: layout for layout in (timm.LAYOUT, huggingface.LAYOUT, mmpretrain.LAYOUT)}
# Under which key a .pth file keeps the tensors: the reference's main.py and timm read "model", mmengine reads "state_dict".
_WRAPPERS = {"timm": "model", "hf": None, "mmpretrain": "state_dict"}


def save_weights(
    variables: Any,
    model: nn.Module,
    path: str | Path,
    layout: str = "timm",
    *,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
) -> Path:
    """Write the variables of `model` for another framework; returns the path of the weights file.

    Args:
      variables: {"params", "batch_stats" (RegNet)}, as `model.init` or `load_weights` give them; written as float32.
      path: a .safetensors or (with torch) .pth file: the tensors alone. Any other path is a folder, which gets model.safetensors
        and what the framework needs to open it: for "timm" the config.json of its hub loader
        (`timm.create_model("local-dir:FOLDER", pretrained=True)`), for "hf" config.json and preprocessor_config.json
        (`from_pretrained(FOLDER)`); mmpretrain has no such thing. Files of these names are replaced.
      layout: "timm" (also facebookresearch/deit), "hf" (transformers 4 and 5), or "mmpretrain".
      preprocessing: of the images; None: the reference's evaluation.
      class_names: one a class, for the labels in config.json.

    All these frameworks fuse the two heads of a distilled model by their logits, whatever `model.fusion` says.

    Raises WeightsError: the layout has no such model, the variables are not this model's, or the path cannot be written.
    """
    path = Path(path)
    preprocessing = preprocessing or Preprocessing()
    if layout not in LAYOUTS:
        raise WeightsError(f"layout={layout!r} is none of {', '.join(LAYOUTS)}")
    _refuse_what_the_layout_lacks(model, layout)
    check_class_names(model, class_names)
    tensors = timm.from_variables({group: values for group, values in variables.items() if values})
    _refuse_other_variables(tensors, timm.expected_tensors(model))
    tensors = LAYOUTS[layout].from_timm(tensors)
    if path.suffix in (".safetensors", ".pth", ".pt", ".bin"):
        write_file(path, tensors, wrapper=_WRAPPERS[layout])
        return path
    if layout == "mmpretrain":
        raise WeightsError(
            f"{path}: mmpretrain reads files, not folders; give a path that ends in .pth (or .safetensors)"
        )
    cards = (timm_cards if layout == "timm" else huggingface_cards)(model, preprocessing, class_names)
    write_file(path / "model.safetensors", tensors)
    for name, card in cards.items():
        _write_json(path / name, card)
    return path / "model.safetensors"


def _refuse_what_the_layout_lacks(model: nn.Module, layout: str) -> None:
    if layout != "timm" and not isinstance(model, VisionTransformer):
        raise WeightsError(f"a {type(model).__name__} is written in timm's layout only, not {layout!r}")


def _refuse_other_variables(tensors: Tensors, expected: Tensors) -> None:
    missing, unexpected, misshapen = compare(tensors, expected)
    if missing or unexpected or misshapen:
        raise MisfitError(
            f"the variables are not this model's (in timm's names): missing {listed(missing)}, unexpected {listed(unexpected)}, "
            f"of another shape {listed(misshapen)}",
            missing,
            unexpected,
            misshapen,
        )


def _write_json(path: Path, card: Card) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_text(json.dumps(card, indent=2) + "\n")
        os.replace(unfinished, path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written ({error})") from error
