"""Writes variables as files for other frameworks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.errors import refuse_address, require_choice
from deit_jax.models.protocol import family
from deit_jax.models.vit_parameters import unstack_blocks
from deit_jax.storage.workdir import refuse_as_output
from deit_jax.weights import declared, huggingface, native, timm
from deit_jax.weights.cards import (
    CARD_NAMES,
    Preprocessing,
    check_class_names,
    flax_cards,
    huggingface_cards,
    timm_cards,
)
from deit_jax.weights.class_names import metadata
from deit_jax.weights.errors import WeightsError, listed, require_match, unusable_values
from deit_jax.weights.files import WRITTEN, encode, write_files
from deit_jax.weights.hub_files import WEIGHTS_FILE
from deit_jax.weights.other_layouts import MMPRETRAIN

LAYOUTS = {layout.name: layout for layout in (timm.LAYOUT, huggingface.LAYOUT, MMPRETRAIN, native.LAYOUT)}
_LAYOUTS_OF = {"vit": tuple(LAYOUTS), "regnet": ("timm", "flax"), "": ("flax",)}  # by `family` of models/protocol.py
# Key of the tensors in a .pth file: the reference's main.py and timm read "model", mmengine reads "state_dict".
_WRAPPERS = {"timm": "model", "hf": None, "mmpretrain": "state_dict", "flax": None}


def save_weights(
    variables: Any,
    model: nn.Module,
    path: str | Path,
    layout: str = "timm",
    *,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
) -> Path:
    """Writes the variables of `model` for another framework; returns the path of the weights file.

    All these frameworks fuse the two heads of a distilled model by their logits, independent of `model.fusion`.

    Args:
      variables: {"params", "batch_stats" (RegNet)}, as from `model.init` or `load_weights`; written as float32.
      path: a .safetensors or (with torch) .pth file for the tensors alone. Any other path is a folder, written completely or not
        at all, with model.safetensors and what the framework needs to open it: for "timm" the config.json of its hub loader
        (`timm.create_model("local-dir:FOLDER", pretrained=True)`), for "hf" config.json and preprocessor_config.json
        (`from_pretrained(FOLDER)`); not for mmpretrain. Existing files of these names are replaced.
      layout: "timm" (also facebookresearch/deit), "hf" (transformers 4 and 5), "mmpretrain", or "flax": this package's own names,
        the only layout of a registered model (`register_model`).
      preprocessing: of the images, for config.json and the metadata of a .safetensors file; None: the reference's evaluation.
      class_names: one per class, for the labels in config.json and the metadata of a .safetensors file.

    Raises WeightsError: the layout does not support the model, the variables are not this model's or hold NaN, infinite values or
    negative variances, or the path cannot be written.
    """
    refuse_address("path", path, WeightsError)
    path = Path(os.path.expanduser(path))
    given, preprocessing = preprocessing, preprocessing or Preprocessing()
    if isinstance(model, str):
        raise WeightsError(f"model={model!r} is a name: give the model that deit_jax.create_model makes")
    require_choice("layout", layout, tuple(LAYOUTS), WeightsError)
    _check_layout(model, layout)
    preprocessing.check(model)
    check_class_names(model, class_names)
    names = timm if family(model) else native
    tensors = names.from_variables(_checked(variables, model))
    require_match(tensors, names.expected_tensors(model), "the variables are not this model's (in timm's names)")
    if found := unusable_values(tensors):
        raise WeightsError(
            f"the variables hold values that make every output NaN (in {names.LAYOUT.name}'s names): {found}"
        )
    if family(model):
        tensors = LAYOUTS[layout].from_timm(tensors)
    facts = metadata(class_names) | declared.metadata(preprocessing.sides(model)[1], given)
    if path.suffix.lower() in WRITTEN:
        write_files({path: encode(path, tensors, wrapper=_WRAPPERS[layout], metadata=facts)})
        return path

    _check_folder(path, layout)
    cards = {"timm": timm_cards, "hf": huggingface_cards, "flax": flax_cards}[layout](model, preprocessing, class_names)
    contents = {path / name: (json.dumps(card, indent=2) + "\n").encode() for name, card in cards.items()}
    weights = path / WEIGHTS_FILE
    write_files({weights: encode(weights, tensors, metadata=facts), **contents})
    for stale in (path / name for name in CARD_NAMES if name not in cards):
        stale.unlink(missing_ok=True)  # from an export in another layout
    return weights


# Suffixes that users type for files; without this check a folder of that name would be created.
_NOT_WRITTEN = (".npz", ".npy", ".ckpt", ".pyth", ".tar", ".h5", ".onnx", ".pkl", ".msgpack", ".safetensor", ".json")


def _check_folder(path: Path, layout: str) -> None:
    if path.suffix.lower() in _NOT_WRITTEN:
        raise WeightsError(f"{path}: weights are written as .safetensors or .pth, or into a folder (no suffix)")
    if layout == "mmpretrain":
        raise WeightsError(f"{path}: mmpretrain reads files, not folders; give a path that ends in .pth")
    refuse_as_output(path, WeightsError)


def _checked(variables: Any, model: nn.Module) -> dict[str, Any]:
    if not isinstance(variables, Mapping) or not isinstance(variables.get("params"), Mapping):
        raise WeightsError('variables must be {"params": ..., and for a RegNet "batch_stats": ...}, as from model.init')
    kept = {group: values for group, values in variables.items() if values}
    wrong = [
        f"{jax.tree_util.keystr(path)}: {getattr(leaf, 'dtype', type(leaf).__name__)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(kept)
        if not jnp.issubdtype(getattr(leaf, "dtype", np.dtype(object)), jnp.floating)
    ]
    if wrong:
        raise WeightsError(f"some variables are not floating-point arrays: {listed(wrong)}")
    return kept | {"params": unstack_blocks(kept["params"])} if family(model) else kept


def _check_layout(model: nn.Module, layout: str) -> None:
    if getattr(model, "folded", False):
        raise WeightsError("BatchNorm is folded into this RegNet's convolutions: save the original's weights")
    known = _LAYOUTS_OF[family(model)]
    if layout not in known:
        raise WeightsError(f"a {type(model).__name__} is written in the layout {' or '.join(known)}, not {layout!r}")
