"""Opens image sources from the `data` section of a config; the registry of sources, including registered ones."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deit_jax.config import default_config
from deit_jax.data.decoding import Crop, PaddedCrop, RandomResizedCrop, evaluation_crop
from deit_jax.data.file_names import is_archive
from deit_jax.data.folder import ImageFolderSource, LooseImageFolder
from deit_jax.data.folder_index import AUTO
from deit_jax.data.imagenet_tars import open_imagenet_tars
from deit_jax.data.other_layouts import MAIN, check_layout, check_no_folders, no_split_folder, no_such_folder, one_class
from deit_jax.data.own_source import OwnSource, open_own
from deit_jax.data.parquet import open_parquet, open_unlabelled_parquet
from deit_jax.data.prepared import EXTENSION, open_prepared
from deit_jax.data.real_labels import RealLabels
from deit_jax.data.shards import has_split
from deit_jax.data.sources import (
    ArraySource,
    DataError,
    ImageSource,
    MissingDataError,
    Split,
    Subset,
    TfdsSource,
    is_multi_label,
)
from deit_jax.data.split_folders import find_split, sibling_splits, split_note, unused_splits
from deit_jax.data.splits import held_out, split_name, take_of_each_class, take_part
from deit_jax.data.tar_shards import open_tar, open_unlabelled_tar
from deit_jax.printable import printable
from deit_jax.registration import same_definition

# Sources whose splits are found by the names of their files, which end so.
_SHARDS = {"tar": ".tar", "parquet": ".parquet", "array_record": EXTENSION}
EMBEDDED = Path(__file__).parent / "embedded" / "fashion_mnist_10k.npz"


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A value of data.source."""

    open_split: Callable[[Any, Split, str], ImageSource]  # (section, split, prefix of fields in messages)
    takes_parts: bool = False  # handles "train[:50%]" itself; otherwise parts are taken from the whole split
    needs_path: bool = False
    unread: tuple[str, ...] = ()  # fields of `data` without effect
    registered: Callable[[Any, Split], Any] | None = None  # a user's opener
    open_unlabelled: Callable[[Any], ImageSource] | None = None  # (section); None: `open_split`


def register_source(name: str, open: Callable[[Any, Split], Any], *, takes_parts: bool = False) -> None:
    """Registers a data source for `config.data.source=<name>`: for training, evaluation and extra evaluation sets.

    Args:
        name: its name, consisting of letters, digits and underscores.
        open: called with the `data` section of the configuration and `"train"` or `"eval"`. `data.train_split` and
            `data.eval_split` are the splits' names; the source may use `data.path` and `data.name` as it likes. For an entry of
            config.evaluation.extra the section has the entry's source, name and path, its split as both splits, and otherwise
            defaults. It returns an object with `__len__`, `__getitem__` (an index to a pair of image and label) and
            `class_names`; docs/extending.md lists optional attributes.
        takes_parts: `open` handles parts of a split, e.g. "train[:50%]", itself, and gets them unchanged. Otherwise they are
            taken from the whole split that it returns.

    Raises:
        ValueError: the name is invalid, or another source has it.
    """
    if not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(f"register_source: {name!r} is not a name of letters, digits and underscores")
    known = _SOURCES.get(name)
    if known is not None and (known.registered is None or not same_definition(known.registered, open)):
        raise ValueError(f"register_source: there is already a source {name!r}: use another name")
    if not callable(open):
        raise ValueError(f"register_source: open of {name!r} is {open!r}, not a function")

    def opener(data: Any, split: Split, flags: str) -> OwnSource:
        return open_own(name, open, data if takes_parts else _with_whole_splits(data, split), split)

    _SOURCES[name] = _Kind(opener, takes_parts=takes_parts, registered=open)


def source_names() -> tuple[str, ...]:
    """Returns the values of data.source, in registration order."""
    return tuple(_SOURCES)


def unread_fields(name: str) -> tuple[str, ...]:
    """Returns the fields of the `data` section that a source ignores; empty for an unknown or registered source."""
    return _SOURCES[name].unread if name in _SOURCES else ()


def _with_whole_splits(data: Any, split: Split) -> Any:
    """Reduces the section's splits to their names: "train" for "train[:50%]"."""
    data = copy.deepcopy(data)
    for field in ("train_split", "eval_split"):
        expression = getattr(data, field)
        try:
            setattr(data, field, split_name(expression) if expression else "")
        except DataError:  # an error in the other split is raised when that is opened
            if field == f"{split}_split":
                raise
    return data


def open_source(data: Any, split: Split) -> ImageSource:
    """Opens a split of the data.

    Args:
        data: the `data` section of a config, or any object with these attributes: `source`, `path`, `name`, `train_split`,
            `eval_split`, `held_out`, `index`, `images_per_class`, `max_eval_images`.
        split: `"train"` or `"eval"`.

    Returns:
        The images of that split, at least one.

    Raises:
        DataError: the data cannot be found or read, is empty, has only one class for training, or `data.source` is unknown.
        ValueError: `split` is neither `"train"` nor `"eval"`.
    """
    if split not in ("train", "eval"):
        raise ValueError(f"split={split!r}: give 'train' or 'eval'")
    source = _open(data, split)
    if is_multi_label(source):
        raise DataError(
            f"{_shown(data)!r} has several labels per image: it can be evaluated in config.evaluation.extra, not as data.name"
        )
    if len(source) == 0:
        what = "training" if split == "train" else "evaluation"
        raise DataError(f"{data.path or _shown(data)}: no images for {what}; correct data.{split}_split")
    if split == "train" and len(source.class_names) < 2:
        raise one_class(source.class_names[0], data.source, data.path)
    if split == "train" and data.images_per_class is not None:
        source = take_of_each_class(source, data.images_per_class)
    limit = data.max_eval_images if split == "eval" else None
    return source if limit is None or limit >= len(source) else Subset(source, np.arange(limit))


def _open(data: Any, split: Split) -> ImageSource:
    kind = _SOURCES.get(data.source)
    if kind is None:
        raise DataError(f"data.source={data.source!r} is unknown; choose {_listed()}")
    if kind.needs_path and not data.path:
        raise DataError(f"data.source={data.source} needs data.path, which is empty; set --config.data.path")
    source = kind.open_split(data, split, MAIN)
    return source if kind.takes_parts else _part(source, _expression(data, split))


def open_extra_set(entry: Any, index: str = AUTO) -> ImageSource:
    """Opens an extra evaluation set.

    Args:
        entry: `source`, `name` and `path` as in the `data` section of a config; `split`, a split's name or a part of one, or ""
            for class folders directly in `path`; optionally `labels`, a file of ReaL's labels to use instead.
        index: as `data.index`.

    Raises MissingDataError if the set or its labels do not exist, DataError if they cannot be read.
    """
    kind = _SOURCES.get(entry.source)
    if kind is None:
        raise DataError(f"source={entry.source!r} is unknown; choose {_listed()}")
    if kind.needs_path and not entry.path:
        raise MissingDataError(f"source={entry.source} needs a path, which is empty: set it, or source=tfds and a name")
    data = _as_section(entry, index)
    images = kind.open_split(data, "eval", "")
    if labels := entry.get("labels", ""):
        images = RealLabels(images, labels)
    return images if kind.takes_parts else _part(images, entry.split)


def open_unlabelled(section: Any, index: str = AUTO) -> ImageSource:
    """Opens unlabelled images; labels that the source has are to be ignored.

    Args:
        section: the `unlabelled` section of a config. `split` is a split's name or a part of one; "": for a folder all images in
            `path`, at any depth, for other sources "train".
        index: as `data.index`.

    Raises DataError if they cannot be found or read.
    """
    kind = _SOURCES.get(section.source)
    if kind is None:
        raise DataError(f"unlabelled.source={section.source!r} is unknown; choose {_listed()}")
    if kind.needs_path and not section.path:
        raise DataError(
            f"unlabelled.source={section.source} needs unlabelled.path, which is empty; set --config.unlabelled.path"
        )
    data = _as_section(section, index)
    if section.source in _SHARDS:
        data.train_split = section.split or "train"
    try:
        if kind.open_unlabelled is not None:
            images = kind.open_unlabelled(data)
        else:
            data.train_split = data.eval_split = section.split or "train"
            images = kind.open_split(data, "train", MAIN)
        images = images if kind.takes_parts else _part(images, section.split)
    except DataError as error:  # it names the fields of the labelled images
        text = re.sub(r"\bdata\.(source|path|name)\b", r"unlabelled.\1", str(error))
        text = re.sub(r"\bdata\.(train|eval)_split( and data\.(train|eval)_split)?\b", "unlabelled.split", text)
        raise type(error)(text) from error
    if len(images) == 0:
        raise DataError(f"unlabelled.path={section.path}: no images; give another path or split")
    return images


def _as_section(entry: Any, index: str) -> Any:
    """Returns a `data` section for a source, name, path and split given elsewhere, with defaults for the other fields."""
    data = default_config().data
    data.update({"source": entry.source, "name": entry.get("name", ""), "path": entry.path, "index": index})
    data.train_split = data.eval_split = entry.split
    return data


def _part(source: ImageSource, expression: str) -> ImageSource:
    return take_part(source, expression) if expression else source


def _listed() -> str:
    names = source_names()
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _shown(data: Any) -> str:
    return data.name if data.source == "tfds" else data.source


def holds_out(data: Any) -> bool:
    """Whether evaluation images are held out of the training images: data.held_out is set and they have no folder or shards."""
    if not data.held_out > 0:
        return False
    name = split_name(data.eval_split)
    if data.source == "folder":
        return find_split(data.path, name, held_out=True) is None
    return data.source in _SHARDS and not has_split(data.path, name, _SHARDS[data.source])


def _expression(data: Any, split: Split) -> str:
    return data.train_split if split == "train" else data.eval_split


def _open_embedded(data: Any, split: Split, flags: str) -> ImageSource:
    return ArraySource.from_npz(EMBEDDED, split_name(_expression(data, split)))


def _unlabelled_arrays(data: Any) -> ImageSource:
    path = EMBEDDED if data.source == "fashion_mnist_10k" else data.path
    if os.path.isdir(path):
        raise DataError(f"{printable(path)} is a folder: set data.path to the .npz file, or data.source=folder")
    return ArraySource.from_npz(path, split_name(data.train_split or "train"), labelled=False)


def _unlabelled_folder(data: Any) -> ImageSource:
    folder, name = data.path, split_name(data.train_split) if data.train_split else ""
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise DataError(f"{printable(folder)} is a file: set data.path to a folder of images")
    return LooseImageFolder(os.path.join(folder, name) if name else folder, data.index)


def _open_tfds(data: Any, split: Split, flags: str) -> ImageSource:
    try:
        return TfdsSource(data.name, _expression(data, split), data.path)  # TFDS handles parts of splits itself
    except MissingDataError:
        if data.path:
            check_no_folders(data.path, f"the TFDS data set {data.name}", flags)
        raise


def _open_arrays(data: Any, split: Split, flags: str) -> ImageSource:
    path, name = data.path, split_name(_expression(data, split))
    if os.path.isdir(path):
        check_no_folders(path, "a .npz file", flags)
        raise DataError(f"{printable(path)} is a folder: set {flags}path to the .npz file")
    try:
        return ArraySource.from_npz(path, name)
    except MissingDataError:
        raise
    except DataError:
        if is_archive(path):  # after the attempt, because a .npz file may have any name
            raise no_such_folder(path, flags) from None
        raise


def _open_folder(data: Any, split: Split, flags: str) -> ImageSource:
    if not flags:
        return _open_extra_folder(data)
    name = split_name(_expression(data, split))
    if not os.path.isdir(data.path):
        raise no_such_folder(data.path)
    if holds_out(data):
        return _hold_out(data, split)
    folder = find_split(data.path, name, or_test=split == "eval")
    if folder is None:
        raise no_split_folder(data.path, name)
    if split == "train":
        check_layout(folder, data.path)
    notes = split_note(folder, name, "training" if split == "train" else "evaluation")
    train_folder = find_split(data.path, split_name(data.train_split))
    other_split = split == "eval" and name != split_name(data.train_split)
    if other_split and train_folder is not None and os.path.samefile(folder, train_folder):
        notes = [*notes, f"{printable(folder)} and {printable(train_folder)} are the same folder, by a link"]
    return ImageFolderSource(folder, data.index, notes)


def _open_extra_folder(data: Any) -> ImageSource:
    folder, name = data.path, split_name(data.eval_split) if data.eval_split else ""
    if not os.path.isdir(data.path):
        raise no_such_folder(data.path, flags="")
    if name:
        folder = find_split(data.path, name) or ""
        if not folder:
            raise no_split_folder(data.path, name, flags="")
    return ImageFolderSource(folder, data.index, split_note(folder, name, "its") if name else ())


def _hold_out(data: Any, split: Split) -> ImageSource:
    name = split_name(data.train_split)
    folder = find_split(data.path, name, held_out=True)
    if folder is None:
        folder, notes = data.path, sibling_splits(data.path)
    else:
        notes = [*split_note(folder, name, "training"), *unused_splits(data.path, folder)]
    check_layout(folder, data.path)
    return _held_out_part(ImageFolderSource(folder, data.index, notes), data, split, folder)


def _or_held_out(open_split: Callable[[Any, Split, str], ImageSource]) -> Callable[[Any, Split, str], ImageSource]:
    """Returns the opener of shards that holds out evaluation images if there are no shards of them."""

    def opener(data: Any, split: Split, flags: str) -> ImageSource:
        if not flags or not holds_out(data):
            return open_split(data, split, flags)
        return _held_out_part(open_split(data, "train", flags), data, split, data.path)

    return opener


def _held_out_part(source: Any, data: Any, split: Split, where: str) -> Subset:
    """Returns the images that are held out, or the others; without names, the images' numbers decide."""
    name = getattr(source, "relative_path", str)
    held = held_out([name(index) for index in range(len(source))], source.labels, data.held_out)
    if not held.any():
        others = (
            "a folder `val` with the same class folders" if data.source == "folder" else "shards of validation images"
        )
        raise DataError(
            f"{printable(where)}: data.held_out={data.held_out:g} leaves no image for evaluation: each class has one image; "
            f"add images, or {others}"
        )
    without = len(source.class_names) - len(np.unique(source.labels[held]))
    notes = [
        f"{without:,} of {len(source.class_names):,} classes have one image, which is used for training and not held out"
    ]
    return Subset(source, np.flatnonzero(held if split == "eval" else ~held), notes if without else ())


_SOURCES = {
    "fashion_mnist_10k": _Kind(
        _open_embedded, unread=("name", "held_out", "copies_gib"), open_unlabelled=_unlabelled_arrays
    ),
    "npz": _Kind(
        _open_arrays,
        needs_path=True,
        unread=("name", "held_out", "copies_gib"),
        open_unlabelled=_unlabelled_arrays,
    ),
    "folder": _Kind(_open_folder, needs_path=True, unread=("name", "copies_gib"), open_unlabelled=_unlabelled_folder),
    "tar": _Kind(_or_held_out(open_tar), needs_path=True, unread=("name",), open_unlabelled=open_unlabelled_tar),
    "parquet": _Kind(_or_held_out(open_parquet), needs_path=True, open_unlabelled=open_unlabelled_parquet),
    "array_record": _Kind(_or_held_out(open_prepared), needs_path=True, unread=("name", "index")),
    "imagenet_tars": _Kind(open_imagenet_tars, needs_path=True, unread=("name", "held_out")),
    "tfds": _Kind(
        _open_tfds,
        takes_parts=True,
        unread=("held_out", "copies_gib"),
        open_unlabelled=lambda data: TfdsSource(data.name, data.train_split or "train", data.path, labelled=False),
    ),
}


def train_crop(data: Any, image_size: int, evaluation: Any = None) -> Crop:
    """Returns the training crop to `image_size` pixels for a config's `data` section.

    `data.train_crop=center` uses the crop of `evaluation`, the config's evaluation section; raises ValueError without it.
    """
    if data.train_crop == "center":
        if evaluation is None:
            raise ValueError("data.train_crop='center' is the evaluation crop: pass the evaluation section")
        return evaluation_crop(evaluation, image_size)
    if data.train_crop == "padded":
        return PaddedCrop(image_size, data.crop_padding)
    return RandomResizedCrop(image_size, tuple(data.crop_scale), tuple(data.crop_ratio))
