"""From the `data` section of a config to an image source."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from deit_jax.data.decoding import Crop, PaddedCrop, RandomResizedCrop, evaluation_crop
from deit_jax.data.file_names import is_archive
from deit_jax.data.folder import ImageFolderSource
from deit_jax.data.folder_index import AUTO
from deit_jax.data.other_layouts import (
    MAIN,
    no_split_folder,
    no_such_folder,
    one_class,
    refuse_folders,
    refuse_other_layout,
)
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
from deit_jax.data.split_folders import find_split, split_note, splits_beside, unused_splits
from deit_jax.data.splits import held_out, split_name, take_of_each_class, take_part
from deit_jax.printable import printable

EMBEDDED = Path(__file__).parent / "embedded" / "fashion_mnist_10k.npz"


def open_source(data: Any, split: Split) -> ImageSource:
    """Opens the split that `data` names.

    Args:
        data: the `data` section of a config, or anything with its fields as attributes: `source`, `path`, `name`,
            `train_split`, `eval_split`, `held_out`, `index`, `images_per_class`, `max_eval_images`.
        split: `"train"` or `"eval"`.

    Returns:
        The images of that split, one or more.

    Raises:
        DataError: the data cannot be found or read, there are no images or, to train on, a single class, or `data.source` is
            unknown.
        ValueError: `split` is neither `"train"` nor `"eval"`.
    """
    if split not in ("train", "eval"):
        raise ValueError(f"split={split!r}: give 'train' or 'eval'")
    source = _open(data, split)
    if is_multi_label(source):
        raise DataError(
            f"{data.name!r} has several labels an image: it can be evaluated in config.evaluation.extra, not as data.name"
        )
    if len(source) == 0:
        what = "trained on" if split == "train" else "evaluated on"
        raise DataError(f"{data.path or data.name or data.source}: no image to be {what}; correct data.{split}_split")
    if split == "train" and len(source.class_names) < 2:
        raise one_class(source.class_names[0], data.source, data.path)
    if split == "train" and data.images_per_class is not None:
        source = take_of_each_class(source, data.images_per_class)
    limit = data.max_eval_images if split == "eval" else None
    return source if limit is None or limit >= len(source) else FirstImages(source, limit)


def _open(data: Any, split: Split) -> ImageSource:
    if data.source in ("npz", "folder") and not data.path:
        raise DataError(f"data.source={data.source} needs data.path, which is empty; set --config.data.path")
    expression = data.train_split if split == "train" else data.eval_split
    if data.source == "tfds":
        return _open_tfds(data.name, expression, data.path)
    name = split_name(expression)
    whole: ImageSource
    if data.source == "fashion_mnist_10k":
        whole = ArraySource.from_npz(EMBEDDED, name)
    elif data.source == "npz":
        whole = _open_arrays(data.path, name)
    elif data.source == "folder":
        whole = _open_folder(data, name, split)
    else:
        raise DataError(f"data.source={data.source!r} is unknown; choose fashion_mnist_10k, npz, folder or tfds")
    return take_part(whole, expression)


def open_further_set(entry: Any, index: str = AUTO) -> ImageSource:
    """Opens a further evaluation set.

    Args:
        entry: `source`, `name` and `path` as in the `data` section of a config; `split`, a split's name or a part of one, and
            of a folder also "", for class folders in `path` itself; `labels`, if there, the file of ReaL's labels that hold
            instead.
        index: as `data.index`.

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
        return relabelled(_open_tfds(entry.name, expression, path, flags=""))
    if source == "folder":
        folder, name = path, split_name(expression) if expression else ""
        if not os.path.isdir(path):
            raise no_such_folder(path, flags="")
        if expression:
            folder = find_split(path, name) or ""
            if not folder:
                raise no_split_folder(path, name, flags="")
        whole = relabelled(ImageFolderSource(folder, index, split_note(folder, name, "its") if name else ()))
        return take_part(whole, expression) if expression else whole
    if source == "fashion_mnist_10k":
        return take_part(relabelled(ArraySource.from_npz(EMBEDDED, split_name(expression))), expression)
    if source == "npz":
        return take_part(relabelled(_open_arrays(path, split_name(expression), flags="")), expression)
    raise DataError(f"source={source!r} is unknown; choose fashion_mnist_10k, npz, folder or tfds")


def holds_out(data: Any) -> bool:
    """Whether the evaluation images are held out of the training folder: data.held_out is set and there is no folder for them."""
    return (
        data.source == "folder"
        and data.held_out > 0
        and find_split(data.path, split_name(data.eval_split), held_out=True) is None
    )


def _open_tfds(name: str, expression: str, path: str, flags: str = MAIN) -> ImageSource:
    try:
        return TfdsSource(name, expression, path)  # TFDS has such expressions itself
    except MissingDataError:
        if path:
            refuse_folders(path, f"the TFDS data set {name}", flags)
        raise


def _open_arrays(path: str, name: str, flags: str = MAIN) -> ImageSource:
    if os.path.isdir(path):
        refuse_folders(path, "a .npz file", flags)
        raise DataError(f"{printable(path)} is a folder: set {flags}path to the .npz file")
    try:
        return ArraySource.from_npz(path, name)
    except MissingDataError:
        raise
    except DataError:
        if is_archive(path):  # a .npz file of another name would have been read
            raise no_such_folder(path, flags) from None
        raise


def _open_folder(data: Any, name: str, split: Split) -> ImageSource:
    if not os.path.isdir(data.path):
        raise no_such_folder(data.path)
    if holds_out(data):
        return _hold_out(data, split)
    folder = find_split(data.path, name, or_test=split == "eval")
    if folder is None:
        raise no_split_folder(data.path, name)
    if split == "train":
        refuse_other_layout(folder, data.path)
    notes = split_note(folder, name, "training" if split == "train" else "evaluation")
    train_folder = find_split(data.path, split_name(data.train_split))
    other_split = split == "eval" and name != split_name(data.train_split)
    if other_split and train_folder is not None and os.path.samefile(folder, train_folder):
        notes = [*notes, f"{printable(folder)} and {printable(train_folder)} are one folder, by a link"]
    return ImageFolderSource(folder, data.index, notes)


def _hold_out(data: Any, split: Split) -> ImageSource:
    name = split_name(data.train_split)
    folder = find_split(data.path, name, held_out=True)
    if folder is None:
        folder, notes = data.path, splits_beside(data.path)
    else:
        notes = [*split_note(folder, name, "training"), *unused_splits(data.path, folder)]
    refuse_other_layout(folder, data.path)
    source = ImageFolderSource(folder, data.index, notes)
    paths = [source.relative_path(index) for index in range(len(source))]
    held = held_out(paths, source.labels, data.held_out)
    if not held.any():
        raise DataError(
            f"{printable(folder)}: data.held_out={data.held_out:g} leaves no image for evaluation, each class has one image; add "
            "images, or a folder `val` with the same class folders"
        )
    without = len(source.class_names) - len(np.unique(source.labels[held]))
    notes = [f"{without:,} of {len(source.class_names):,} classes have one image, which is trained on and not held out"]
    return Subset(source, np.flatnonzero(held if split == "eval" else ~held), notes if without else ())


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
