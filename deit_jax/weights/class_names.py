"""Class names: those of a weights file, and readable names for ImageNet's classes."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deit_jax.weights.cards import CARD_NAMES
from deit_jax.weights.files import local_path, read_beside, read_metadata

METADATA_KEY = "class_names"  # key in the metadata of a .safetensors file from `save_weights`
_UNNAMED = re.compile(r"LABEL_\d+")  # what transformers writes for unnamed classes

# Files of TFDS, a dependency of this package: the 1,000 names, and the WordNet ids in the same order.
_NAMES, _WORDNET_IDS = "datasets/siscore/labels.py", "datasets/imagenet2012/labels.txt"
_IMAGENET_CLASSES = 1000


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """Returns the class names of a weights file or folder, in the order of the outputs; None if it has none.

    Reads the metadata of a .safetensors file that this project wrote, else `label_names` (timm) or `id2label` (transformers) of
    the config.json next to it.
    """
    path = local_path(path)
    if path.suffix == ".safetensors" and (names := _names(read_metadata(path, METADATA_KEY))) is not None:
        return names
    return _from_card(read_beside(path, CARD_NAMES[0]))


def metadata(class_names: Sequence[str] | None) -> dict[str, str]:
    """Returns the metadata of a .safetensors file for class names; {} for None."""
    return {} if class_names is None else {METADATA_KEY: json.dumps([str(name) for name in class_names])}


def _from_card(card: Mapping[str, Any]) -> tuple[str, ...] | None:
    labels = card.get("id2label")
    if isinstance(labels, dict) and set(labels) == {str(i) for i in range(len(labels))}:
        names = _names([labels[str(i)] for i in range(len(labels))])
        return None if names and all(_UNNAMED.fullmatch(name) for name in names) else names
    return _names(card.get("label_names"))


def _names(value: Any) -> tuple[str, ...] | None:
    return tuple(value) if isinstance(value, list) and value and all(isinstance(it, str) for it in value) else None


@functools.cache
def imagenet_class_names() -> tuple[str, ...] | None:
    """Returns the names of ImageNet's 1,000 classes in order; None if the installed TFDS does not have them."""
    folder = _tfds_folder()
    try:
        # A list of strings in Python syntax. Parse the file, because importing TFDS takes long.
        source = (folder / _NAMES).read_text(encoding="utf-8") if folder else ""
        (labels,) = (
            node.value
            for node in ast.parse(source).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "IMAGENET_LABELS_LIST"
        )
        names = tuple(str(name) for name in ast.literal_eval(labels))
    except (OSError, SyntaxError, ValueError):
        return None
    return names if len(names) == _IMAGENET_CLASSES else None


@functools.cache
def imagenet_wordnet_ids() -> tuple[str, ...] | None:
    """Returns the WordNet ids of ImageNet's 1,000 classes ("n01440764") in order; None if the installed TFDS lacks them."""
    folder = _tfds_folder()
    try:
        ids = tuple((folder / _WORDNET_IDS).read_text(encoding="utf-8").split()) if folder else ()
    except OSError:
        return None
    return ids if len(ids) == _IMAGENET_CLASSES else None


def readable(class_names: Sequence[str]) -> tuple[str, ...]:
    """Replaces WordNet ids ("n02123045") by ImageNet's names ("tabby, tabby cat") if all names are such ids."""
    names, ids = imagenet_class_names(), imagenet_wordnet_ids()
    known = {} if names is None or ids is None else dict(zip(ids, names, strict=True))
    return tuple(known[name] for name in class_names) if set(class_names) <= set(known) else tuple(class_names)


def names_of_weights(weights: str, data_names: Sequence[str]) -> tuple[str, ...] | None:
    """Returns the class names of a weights file, or of published weights if the data's are ImageNet's; None if unknown."""
    if weights != "pretrained":
        names = read_class_names(weights)
        return None if names is None else as_wordnet_ids(names, data_names)
    ids = imagenet_wordnet_ids()
    return ids if ids is not None and set(data_names) & set(ids) else None


def as_wordnet_ids(names: Sequence[str], data_names: Sequence[str]) -> tuple[str, ...]:
    """Returns a network's class names, as WordNet ids if the data has those and the network has ImageNet's classes by name.

    ImageNet's classes by name ("tench, Tinca tinca") are the same classes in the same order.
    """
    ids = imagenet_wordnet_ids()
    if ids is None or not set(data_names) & set(ids):
        return tuple(names)
    by_name = len(names) == len(ids) and not set(names) & set(ids)
    return ids if by_name else tuple(names)


def _tfds_folder() -> Path | None:
    spec = importlib.util.find_spec("tensorflow_datasets")
    return Path(spec.origin).parent if spec and spec.origin else None
