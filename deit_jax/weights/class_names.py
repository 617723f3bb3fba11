"""Names of classes that a person understands."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from deit_jax.weights.labels import read_class_names

# Files of TFDS, a dependency of this package: the 1,000 names, and the WordNet numbers in the same order.
_NAMES, _NUMBERS = "datasets/siscore/labels.py", "datasets/imagenet2012/labels.txt"
_IMAGENET_CLASSES = 1000


@functools.cache
def imagenet_class_names() -> tuple[str, ...] | None:
    """The names of ImageNet's 1,000 classes in their order; None where the installed TFDS does not have them."""
    folder = _tfds_folder()
    try:
        # A list of strings in Python's notation. The file is read, not run, and TFDS, which takes long, is not imported.
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


def readable(class_names: Sequence[str]) -> tuple[str, ...]:
    """The names, ImageNet's WordNet numbers ("n02123045") replaced by its names ("tabby, tabby cat") where all are such."""
    known = _names_by_number()
    if class_names and all(name in known for name in class_names):
        return tuple(known[name] for name in class_names)
    return tuple(class_names)


@functools.cache
def imagenet_wordnet_numbers() -> tuple[str, ...] | None:
    """WordNet's numbers of ImageNet's 1,000 classes ("n01440764"), in their order; None where the installed TFDS lacks them."""
    folder = _tfds_folder()
    try:
        numbers = tuple((folder / _NUMBERS).read_text(encoding="utf-8").split()) if folder else ()
    except OSError:
        return None
    return numbers if len(numbers) == _IMAGENET_CLASSES else None


def names_of_weights(weights: str, data_names: Sequence[str]) -> tuple[str, ...] | None:
    """The class names of a weights file, or of published weights where the data's are ImageNet's; None if not known."""
    names = None if weights == "pretrained" else read_class_names(weights)
    numbers = imagenet_wordnet_numbers()
    if numbers is None or not set(data_names) & set(numbers):
        return names
    # ImageNet's classes as words ("tench, Tinca tinca"): the data has WordNet's numbers of the same classes, in the same order.
    in_words = names is not None and len(names) == len(numbers) and not set(names) & set(numbers)
    return numbers if weights == "pretrained" or in_words else names


@functools.cache
def _names_by_number() -> dict[str, str]:
    names, numbers = imagenet_class_names(), imagenet_wordnet_numbers()
    return {} if names is None or numbers is None else dict(zip(numbers, names, strict=True))


def _tfds_folder() -> Path | None:
    spec = importlib.util.find_spec("tensorflow_datasets")
    return Path(spec.origin).parent if spec and spec.origin else None
