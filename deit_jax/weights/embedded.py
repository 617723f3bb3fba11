"""The trained network that comes with the package: a small RegNetY for Fashion-MNIST, the quick start's teacher.

Its card, `fashion_mnist_teacher.json`, says how it was made and what it gets right.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from deit_jax.weights.errors import WeightsError

EMBEDDED = "embedded"  # as teacher.weights or model.weights
_FILE = Path(__file__).with_name("fashion_mnist_teacher.safetensors")


@functools.cache
def embedded_card() -> dict[str, Any]:
    """The card: model, overrides, training images, command, seed, epochs, time, accuracies in percent, SHA-256 of the file.

    Raises WeightsError if it cannot be read.
    """
    path = _FILE.with_suffix(".json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read ({type(error).__name__}): install deit_jax again") from error


def embedded_file() -> Path:
    """The weights, in timm's names and float16, with the class names. Raises WeightsError if they are not those of the card."""
    try:
        found = hashlib.sha256(_FILE.read_bytes()).hexdigest()
    except OSError as error:
        raise WeightsError(f"{_FILE} cannot be read ({error.strerror}): install deit_jax again") from error
    if found != embedded_card()["sha256"]:
        raise WeightsError(f"{_FILE} is damaged (its SHA-256 is {found[:16]}...): install deit_jax again")
    return _FILE
