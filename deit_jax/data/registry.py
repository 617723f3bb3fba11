"""From the `data` section of a config to an image source."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from deit_jax.data.decoding import Crop, PaddedCrop, RandomResizedCrop, evaluation_crop
from deit_jax.data.folder import ImageFolderSource
from deit_jax.data.real_labels import RealLabels
from deit_jax.data.sources import (
    ArraySource,
    DataError,
    FirstImages,
    ImageSource,
    MissingDataError,
    Split,
    Subset,
    TfdsSource,
    is_multi_label,
)
from deit_jax.data.splits import held_out, split_name, take_part

EMBEDDED = Path(__file__).parent / "embedded" / "fashion_mnist_10k.npz"


def open_source(data: Any, split: Split) -> ImageSource:
    """Opens the split that `data` names.

    Args:
        data: the `data` section of a config, or anything with its fields as attributes: `source`, `path`, `name`,
            `train_split`, `eval_split`, `held_out`, `max_eval_images`.
        split: `"train"` or `"eval"`.

    Returns:
        The images of that split.

    Raises:
        DataError: the data cannot be found or read, or `data.source` is unknown.
        ValueError: `split` is neither `"train"` nor `"eval"`.
    """
    if split not in ("train", "eval"):
        raise ValueError(f"split={split!r}: give 'train' or 'eval'")
    source = _open(data, split)
    if is_multi_label(source):
        raise DataError(
            f"{data.name!r} has several labels an image: it can be evaluated in config.evaluation.extra, not as data.name"
        )
    limit = data.max_eval_images if split == "eval" else None
    return source if limit is None or limit >= len(source) else FirstImages(source, limit)


def _open(data: Any, split: Split) -> ImageSource:
    if data.source in ("npz", "folder") and not data.path:
        raise DataError(f"data.source={data.source} needs data.path, which is empty; set --config.data.path")
    expression = data.train_split if split == "train" else data.eval_split
    if data.source == "tfds":
        return TfdsSource(data.name, expression, data.path)  # TFDS has such expressions itself
    name = split_name(expression)
    whole: ImageSource
    if data.source == "fashion_mnist_10k":
        whole = ArraySource.from_npz(EMBEDDED, name)
    elif data.source == "npz":
        whole = ArraySource.from_npz(data.path, name)
    elif data.source == "folder":
        whole = _open_folder(data, name, split)
    else:
        raise DataError(f"data.source={data.source!r} is unknown; choose fashion_mnist_10k, npz, folder or tfds")
    return take_part(whole, expression)


def open_further_set(entry: Any) -> ImageSource:
    """Opens a further evaluation set.

    Args:
        entry: `source`, `name` and `path` as in the `data` section of a config; `split`, a split's name or a part of one, and
            of a folder also "", for class folders in `path` itself; `labels`, if there, the file of ReaL's labels that hold
            instead.

    Raises:
        MissingDataError: the set or its labels are not there.
        DataError: they cannot be read.
    """
    source, path, expression = entry.source, entry.path, entry.split
    labels = entry.get("labels", "")

    def relabelled(images: ImageSource) -> ImageSource:
        return RealLabels(images, labels) if labels else images

    if source in ("npz", "folder") and not path:
        raise MissingDataError(f"source={source} needs a path, which is empty: set it, or source=tfds and a name")
    if source == "tfds":
        return relabelled(TfdsSource(entry.name, expression, path))
    if source == "folder":
        folder = _split_folder(path, split_name(expression)) if expression else path
        whole = relabelled(ImageFolderSource(folder))
        return take_part(whole, expression) if expression else whole
    if source in ("fashion_mnist_10k", "npz"):
        whole = ArraySource.from_npz(EMBEDDED if source == "fashion_mnist_10k" else path, split_name(expression))
        return take_part(relabelled(whole), expression)
    raise DataError(f"source={source!r} is unknown; choose fashion_mnist_10k, npz, folder or tfds")


def holds_out(data: Any) -> bool:
    """Whether the evaluation images are held out of the training folder: data.held_out is set and there is no folder for them."""
    return (
        data.source == "folder"
        and data.held_out > 0
        and not os.path.isdir(_split_folder(data.path, split_name(data.eval_split)))
    )


def _open_folder(data: Any, name: str, split: Split) -> ImageSource:
    if holds_out(data):
        folder = _split_folder(data.path, split_name(data.train_split))
        source = ImageFolderSource(folder if os.path.isdir(folder) else data.path)
        paths = [source.relative_path(index) for index in range(len(source))]
        held = held_out(paths, source.labels, data.held_out)
        return Subset(source, np.flatnonzero(held if split == "eval" else ~held))
    return ImageFolderSource(_split_folder(data.path, name))


def _split_folder(root: str, name: str) -> str:
    folder = os.path.join(root, name)
    # "validation" is TFDS's name and the default; the usual ImageNet folders call it "val".
    if name == "validation" and not os.path.isdir(folder) and os.path.isdir(os.path.join(root, "val")):
        folder = os.path.join(root, "val")
    return folder


def train_crop(data: Any, image_size: int, evaluation: Any = None) -> Crop:
    """The training crop of a config's `data` section, to `image_size` pixels.

    evaluation: the config's `evaluation` section, whose crop `data.train_crop=center` takes. Raises ValueError without it.
    """
    if data.train_crop == "center":
        if evaluation is None:
            raise ValueError("data.train_crop='center' is the evaluation's crop: give the evaluation section")
        return evaluation_crop(evaluation, image_size)
    if data.train_crop == "padded":
        return PaddedCrop(image_size, data.crop_padding)
    return RandomResizedCrop(image_size, tuple(data.crop_scale), tuple(data.crop_ratio))
