"""From the `data` section of a config to an image source."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from deit_jax.data.decoding import Crop, PaddedCrop, RandomResizedCrop
from deit_jax.data.sources import ArraySource, DataError, FirstImages, ImageFolderSource, ImageSource, Split, TfdsSource

EMBEDDED = Path(__file__).parent / "embedded" / "fashion_mnist_10k.npz"


def open_source(data: Any, split: Split) -> ImageSource:
    """Opens the split that `data` names.

    Args:
        data: the `data` section of a config, or anything with its fields as attributes: `source`, `path`, `name`,
            `train_split`, `eval_split`, `max_eval_images`.
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
    limit = data.max_eval_images if split == "eval" else None
    return source if limit is None or limit >= len(source) else FirstImages(source, limit)


def _open(data: Any, split: Split) -> ImageSource:
    if data.source == "fashion_mnist_10k":
        return ArraySource.from_npz(EMBEDDED, split)
    if data.source in ("npz", "folder") and not data.path:
        raise DataError(f"data.source={data.source} needs data.path, which is empty; set --config.data.path")
    if data.source == "npz":
        return ArraySource.from_npz(data.path, split)
    name = data.train_split if split == "train" else data.eval_split
    if data.source == "folder":
        return _open_folder(data, split)
    if data.source == "tfds":
        return TfdsSource(data.name, name, data.path)
    raise DataError(f"data.source={data.source!r} is unknown; choose fashion_mnist_10k, npz, folder or tfds")


def _open_folder(data: Any, split: Split) -> ImageFolderSource:
    train = os.path.join(data.path, data.train_split)
    if split == "train":
        return ImageFolderSource(train)
    held_out = os.path.join(data.path, data.eval_split)
    # "validation" is TFDS's name and the default; the usual ImageNet folders call it "val".
    if (
        data.eval_split == "validation"
        and not os.path.isdir(held_out)
        and os.path.isdir(os.path.join(data.path, "val"))
    ):
        held_out = os.path.join(data.path, "val")
    source = ImageFolderSource(held_out)
    if os.path.isdir(train):
        # Labels are positions among the sorted names: one folder more or less shifts them all without a word.
        names = {entry.name for entry in os.scandir(train) if entry.is_dir()}
        different = sorted(names ^ set(source.class_names))
        if different:
            raise DataError(
                f"{held_out}: {len(different)} class folders are not the same as in {train} (first: {different[0]!r}); "
                "give both splits the same class folders"
            )
    return source


def train_crop(data: Any, image_size: int) -> Crop:
    """The training crop of a config's `data` section, to `image_size` pixels."""
    if data.train_crop == "padded":
        return PaddedCrop(image_size, data.crop_padding)
    return RandomResizedCrop(image_size, tuple(data.crop_scale), tuple(data.crop_ratio))
