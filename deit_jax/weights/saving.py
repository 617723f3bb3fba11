"""Our variables as files that other frameworks open."""

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
from deit_jax.models.stacking import unstack_blocks
from deit_jax.storage.workdir import METRICS, Workdir
from deit_jax.weights import huggingface, labels, mmpretrain, native, timm
from deit_jax.weights.cards import CARD_NAMES, check_class_names, flax_cards, huggingface_cards, timm_cards
from deit_jax.weights.errors import MisfitError, WeightsError, listed
from deit_jax.weights.files import WRITTEN, Tensors, encode, write_files
from deit_jax.weights.layout import compare
from deit_jax.weights.preprocessing import Preprocessing
from deit_jax.weights.values import unusable_values

LAYOUTS = {layout.name: layout for layout in (timm.LAYOUT, huggingface.LAYOUT, mmpretrain.LAYOUT, native.LAYOUT)}
_LAYOUTS_OF = {"vit": tuple(LAYOUTS), "regnet": ("timm", "flax"), "": ("flax",)}  # by `family` of models/protocol.py
# Under which key a .pth file keeps the tensors: the reference's main.py and timm read "model", mmengine reads "state_dict".
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
    """Write the variables of `model` for another framework; returns the path of the weights file.

    Args:
      variables: {"params", "batch_stats" (RegNet)}, as `model.init` or `load_weights` give them; written as float32.
      path: a .safetensors or (with torch) .pth file: the tensors alone. Any other path is a folder, which gets model.safetensors
        and what the framework needs to open it: for "timm" the config.json of its hub loader
        (`timm.create_model("local-dir:FOLDER", pretrained=True)`), for "hf" config.json and preprocessor_config.json
        (`from_pretrained(FOLDER)`); mmpretrain has no such thing. Files of these names are replaced.
      layout: "timm" (also facebookresearch/deit), "hf" (transformers 4 and 5), "mmpretrain", or "flax": this package's own names,
        the only layout of a registered model (`register_model`).
      preprocessing: of the images; None: the reference's evaluation.
      class_names: one a class, for the labels in config.json, and the metadata of a .safetensors file.

    A folder is written whole or not at all.

    All these frameworks fuse the two heads of a distilled model by their logits, whatever `model.fusion` says.

    Raises WeightsError: the layout has no such model, the variables are not this model's or hold NaN, infinite numbers or
    negative variances, or the path cannot be written.
    """
    refuse_address("path", path, WeightsError)
    path = Path(os.path.expanduser(path))
    preprocessing = preprocessing or Preprocessing()
    if isinstance(model, str):
        raise WeightsError(f"model={model!r} is a name: give the model that deit_jax.create_model makes")
    require_choice("layout", layout, tuple(LAYOUTS), WeightsError)
    _refuse_what_the_layout_lacks(model, layout)
    preprocessing.check(model)
    check_class_names(model, class_names)
    names = timm if family(model) else native
    tensors = names.from_variables(_checked(variables, model))
    _refuse_other_variables(tensors, names.expected_tensors(model))
    if found := unusable_values(tensors):
        raise WeightsError(
            f"the variables hold values that make every answer NaN (in {names.LAYOUT.name}'s names): {found}"
        )
    if family(model):
        tensors = LAYOUTS[layout].from_timm(tensors)
    if path.suffix.lower() in WRITTEN:
        write_files({path: encode(path, tensors, wrapper=_WRAPPERS[layout], metadata=labels.metadata(class_names))})
        return path

    _refuse_as_a_folder(path, layout)
    cards = {"timm": timm_cards, "hf": huggingface_cards, "flax": flax_cards}[layout](model, preprocessing, class_names)
    contents = {path / name: (json.dumps(card, indent=2) + "\n").encode() for name, card in cards.items()}
    weights = path / "model.safetensors"
    write_files({weights: encode(weights, tensors, metadata=labels.metadata(class_names)), **contents})
    for stale in (path / name for name in CARD_NAMES if name not in cards):
        stale.unlink(missing_ok=True)  # of an earlier export in another layout
    return weights


# What people type for a file, and what would become a folder of that name.
_NOT_WRITTEN = (".npz", ".npy", ".ckpt", ".pyth", ".tar", ".h5", ".onnx", ".pkl", ".msgpack", ".safetensor", ".json")


def _refuse_as_a_folder(path: Path, layout: str) -> None:
    if path.suffix.lower() in _NOT_WRITTEN:
        raise WeightsError(f"{path}: weights are written as .safetensors or .pth, or into a folder (no suffix)")
    if layout == "mmpretrain":
        raise WeightsError(
            f"{path}: mmpretrain reads files, not folders; give a path that ends in .pth (or .safetensors)"
        )
    workdir = Workdir.at(path)
    if workdir.checkpoints.exist() or workdir.has(METRICS):
        raise WeightsError(
            f"{path} is the --workdir of a training run, whose config.json would be lost: give another folder"
        )


def _checked(variables: Any, model: nn.Module) -> dict[str, Any]:
    if not isinstance(variables, Mapping) or not isinstance(variables.get("params"), Mapping):
        raise WeightsError(
            'variables are {"params": ..., and of a RegNet "batch_stats": ...}, as model.init gives them'
        )
    kept = {group: values for group, values in variables.items() if values}
    wrong = [
        f"{jax.tree_util.keystr(path)}: {getattr(leaf, 'dtype', type(leaf).__name__)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(kept)
        if not jnp.issubdtype(getattr(leaf, "dtype", np.dtype(object)), jnp.floating)
    ]
    if wrong:
        raise WeightsError(f"variables that are not floating-point arrays: {listed(wrong)}")
    return kept | {"params": unstack_blocks(kept["params"])} if family(model) else kept


def _refuse_what_the_layout_lacks(model: nn.Module, layout: str) -> None:
    if getattr(model, "folded", False):
        raise WeightsError("BatchNorm is folded into this RegNet's convolutions: save the original's weights")
    known = _LAYOUTS_OF[family(model)]
    if layout not in known:
        raise WeightsError(f"a {type(model).__name__} is written in the layout {' or '.join(known)}, not {layout!r}")


def _refuse_other_variables(tensors: Tensors, expected: Tensors) -> None:
    missing, unexpected, misshapen = compare(tensors, expected)
    if missing or unexpected or misshapen:
        kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        problems = "; ".join(f"{kind} {listed(names)}" for kind, names in kinds if names)
        message = f"the variables are not this model's (in timm's names): {problems}"
        raise MisfitError(message, missing, unexpected, misshapen)
