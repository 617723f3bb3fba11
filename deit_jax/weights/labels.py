"""The class names that a weights file brings along."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from deit_jax.weights.embedded import EMBEDDED, embedded_file

METADATA_KEY = "class_names"  # of a .safetensors file that `save_weights` wrote
_CARD = "config.json"
_UNNAMED = re.compile(r"LABEL_\d+")  # what transformers writes for classes without names


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """The names of a model's classes in the order of its outputs, as a weights file or its folder has them; None if it has none.

    Read from the metadata of a .safetensors file that this project wrote, else from `label_names` (timm) or `id2label`
    (transformers) of the config.json beside it.
    """
    path = embedded_file() if str(path) == EMBEDDED else Path(os.path.expanduser(path))
    if path.suffix == ".safetensors" and (names := _from_metadata(path)) is not None:
        return names
    try:
        card = json.loads((path if path.is_dir() else path.parent).joinpath(_CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return _from_card(card) if isinstance(card, dict) else None


def metadata(class_names: Sequence[str] | None) -> dict[str, str]:
    """What a .safetensors file keeps of the names; {} without names."""
    return {} if class_names is None else {METADATA_KEY: json.dumps([str(name) for name in class_names])}


def _from_metadata(path: Path) -> tuple[str, ...] | None:
    try:
        with safe_open(path, framework="np") as file:
            return _names(json.loads((file.metadata() or {})[METADATA_KEY]))
    except Exception:  # no such key or file, or a damaged one, which whoever reads the tensors reports
        return None


def _from_card(card: dict[str, Any]) -> tuple[str, ...] | None:
    labels = card.get("id2label")
    if isinstance(labels, dict) and set(labels) == {str(i) for i in range(len(labels))}:
        names = _names([labels[str(i)] for i in range(len(labels))])
        return None if names and all(_UNNAMED.fullmatch(name) for name in names) else names
    return _names(card.get("label_names"))


def _names(value: Any) -> tuple[str, ...] | None:
    return tuple(value) if isinstance(value, list) and value and all(isinstance(it, str) for it in value) else None
