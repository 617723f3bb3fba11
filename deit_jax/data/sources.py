"""Sources of labeled images: arrays and TFDS data sets (class folders: folder.py). One protocol with random access.

A source returns *encoded* bytes if the data set is stored encoded, so that the loader's threads decode each image once. Every
source pickles, because loader workers are spawned processes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from deit_jax.data.known_sets import how_to_get, known_set
from deit_jax.errors import UserError

Split = Literal["train", "eval"]

# Advice for pixels of another type, whose white level only the user knows.
TO_UINT8 = (
    "convert them with np.clip(255 / WHITE * pixels, 0, 255).round().astype(np.uint8), "
    "where WHITE is the value of white"
)


UNLABELLED = ("unlabelled",)  # the class names of images whose labels are not read


class DataError(UserError):
    """Invalid input data. The message is one line: what is wrong, in which file or index, what to do."""


class MissingDataError(DataError):
    """The data does not exist, or no data has this name. The message says how to get it."""


class UnusableError(DataError):
    """One image is gone, cannot be decoded or has no valid label; unlike after a disk failure, it can be replaced."""


class Example(NamedTuple):
    """One labeled image.

    `image` is an encoded file (`bytes`) or pixels, uint8 `[H, W]`, `[H, W, 1]` or `[H, W, 3]`; `label` is an index into the
    source's `class_names`. In a multi-label source it is a tuple of all correct labels, possibly empty.
    """

    image: bytes | np.ndarray
    label: int | tuple[int, ...]


@runtime_checkable
class ImageSource(Protocol):
    """Random access to labeled images. Must pickle, and must allow concurrent `__getitem__` calls from several threads."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, in label order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def describe(self, index: int) -> str:
        """Describes where image `index` is: a file's path, or a data set's name and the index."""


def is_multi_label(source: ImageSource) -> bool:
    """Whether each image may have any number of labels; such sources have a true attribute `multi_label`."""
    return getattr(source, "multi_label", False)


def fingerprint_of(source: ImageSource) -> str:
    """Returns a digest of a source's images, their order and labels: 32 hexadecimal digits.

    It covers the relative file names of a folder, the values of arrays, or the version and split of a TFDS data set, so it does
    not depend on where the data is. "" if the source has no method `fingerprint`.
    """
    method = getattr(source, "fingerprint", None)
    return "" if method is None else method()


def labels_of(source: ImageSource) -> np.ndarray | None:
    """Returns the label of every image, integers `[N]`, if the source has them as an attribute `labels`; else None."""
    return getattr(source, "labels", None)


def name_of(source: ImageSource, index: int) -> str:
    """Returns what distinguishes an image within its data: its relative path or its file's name; "" if the source has neither."""
    for method in ("relative_path", "file_name"):
        if (name := getattr(source, method, None)) is not None:
            return name(index)
    return ""


def path_of(source: ImageSource, index: int) -> str:
    """Returns the path of an image's own file; "" if the images of the source are not files, e.g. arrays or parts of shards."""
    method = getattr(source, "path", None)
    return "" if method is None else method(index)


def searched_folders(source: ImageSource) -> tuple[str, ...]:
    """Returns the folders from which a source lists its images; empty for arrays and TFDS."""
    return getattr(source, "folders", ())


def digest(*parts: bytes | np.ndarray) -> str:
    """Returns a digest of bytes and arrays, including their lengths, dtypes and shapes: 32 hexadecimal digits."""
    result = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            result.update(f"{part.dtype.str}{part.shape}".encode())
            result.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data if part.size else b"")
        else:
            result.update(f"bytes({len(part)})".encode())
            result.update(part)
    return result.hexdigest()


def notes_of(*sources: ImageSource) -> list[str]:
    """Returns the lines to print about sources at the start of a run, e.g. which files were skipped, without duplicates.

    A source may have them as an attribute `notes`.
    """
    return list(dict.fromkeys(note for source in sources for note in getattr(source, "notes", ())))


class SourceView:
    """Base of sources that present another source's images. `notes` are added to its notes; subclasses override what differs."""

    def __init__(self, source: ImageSource, notes: Sequence[str] = ()):
        self._source = source
        self.class_names = tuple(source.class_names)
        self.multi_label = is_multi_label(source)
        self.folders = searched_folders(source)
        self.notes = (*notes_of(source), *notes)

    def __len__(self) -> int:
        return len(self._source)

    def describe(self, index: int) -> str:
        """Returns the other source's description."""
        return self._source.describe(index)

    def path(self, index: int) -> str:
        """Returns the path of the image's own file, see `path_of`."""
        return path_of(self._source, index)


class Subset(SourceView):
    """Some images of another source, in the order of `indices`, integers `[N]` that may repeat; see `SourceView`."""

    def __init__(self, source: ImageSource, indices: np.ndarray, notes: Sequence[str] = ()):
        super().__init__(source, notes)
        self._indices = np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._indices[index])]

    def describe(self, index: int) -> str:
        """Returns the other source's description."""
        return self._source.describe(int(self._indices[index]))

    def path(self, index: int) -> str:
        """Returns the path of the image's own file, see `path_of`."""
        return path_of(self._source, int(self._indices[index]))

    def relative_path(self, index: int) -> str:
        """Returns the name of the image, see `name_of`."""
        return name_of(self._source, int(self._indices[index]))

    @property
    def labels(self) -> np.ndarray | None:
        """Labels of the images, if the other source knows its own."""
        labels = labels_of(self._source)
        return None if labels is None else labels[self._indices]

    def fingerprint(self) -> str:
        """Digest of the other source's images and the indices."""
        whole = fingerprint_of(self._source)
        return digest(whole.encode(), self._indices) if whole else ""


class ArraySource:
    """Images in memory.

    Args:
        images: uint8 `[N, H, W]`, `[N, H, W, 1]` or `[N, H, W, 3]`.
        labels: integers `[N]`, each in `[0, len(class_names))`; the attribute `labels` is int32.
        class_names: name of each class.
        origin: name of the images in messages, e.g. a file's name.

    Raises:
        DataError: no images, or inconsistent shapes, dtypes or labels.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...], origin: str = "the arrays"
    ):
        images, labels = np.asarray(images), np.asarray(labels)
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))):
            advice = "" if images.dtype == np.uint8 else f": {TO_UINT8}"
            raise DataError(
                f"{origin}: images are {images.dtype}{list(images.shape)}; give uint8 [N, H, W] or [N, H, W, 1 or 3]{advice}"
            )
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or len(labels) != len(images):
            raise DataError(
                f"{origin}: labels are {labels.dtype}{list(labels.shape)} for {len(images)} images; give integers [N]"
            )
        if images.size == 0:
            raise DataError(f"{origin}: images are {list(images.shape)}; give at least one image")
        wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
        if wrong.size:
            raise DataError(
                f"{origin}: label {labels[wrong[0]]} of image {wrong[0]} is outside the {len(class_names)} class names; "
                "labels count from 0"
            )
        self._images = images
        self.labels = labels.astype(np.int32)
        self.class_names = tuple(str(name) for name in class_names)
        self._origin = origin

    @classmethod
    def from_npz(cls, path: str | os.PathLike[str], split: str, *, labelled: bool = True) -> ArraySource:
        """Reads one split of a .npz file.

        Its keys: `train_images` and `test_images`, uint8 `[N, H, W]` or `[N, H, W, 3]`; `train_labels` and `test_labels`,
        integers `[N]`; `class_names`, strings `[K]`. `split` is the prefix of the keys. A split other than "train" without keys
        ("validation", "eval") reads the test keys.

        Not `labelled`: only the images are read, of exactly that split; all labels are 0, and the one class is "unlabelled".

        Raises:
            DataError: the file is missing or invalid, or lacks a key.
        """
        path = Path(path)
        try:
            # allow_pickle=False, so that a data file cannot run code.
            with np.load(path, allow_pickle=False) as file:
                exact = split == "train" or f"{split}_images" in file or not labelled
                part = split if exact else "test"
                keys = (f"{part}_images", *((f"{part}_labels", "class_names") if labelled else ()))
                missing = [key for key in keys if key not in file]
                if missing:
                    raise DataError(
                        f"{path}: key {missing[0]!r} is missing (found: {', '.join(sorted(file)) or 'none'}); "
                        "save it with numpy.savez"
                    )
                images = file[keys[0]]
                labels, names = (
                    (file[key] for key in keys[1:]) if labelled else (np.zeros(len(images), np.int32), UNLABELLED)
                )
        except DataError:
            raise
        except FileNotFoundError:
            raise MissingDataError(f"{path}: no such file; set data.path to a .npz file") from None
        except Exception as error:  # numpy, zipfile and zlib raise different exceptions for a damaged file
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{path}: not a readable .npz file ({reason}); save it again with numpy.savez") from error
        return cls(images, labels, tuple(np.atleast_1d(names).tolist()), origin=f"{path} ({part} images)")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        return Example(self._images[index], int(self.labels[index]))

    def describe(self, index: int) -> str:
        """Returns the images' origin and the index."""
        return f"image {index} of {self._origin}"

    def fingerprint(self) -> str:
        """Digest of the pixels and the labels."""
        return digest(self._images, self.labels)


class TfdsSource:
    """A prepared TFDS data set, read as encoded bytes without TensorFlow.

    It needs an `image` and a class label: the feature `label`, or the one that `known_sets.py` lists (a sequence of class labels
    makes the source multi-label).

    Args:
        name: TFDS name, e.g. `imagenet2012`; a config or version may follow in TFDS's notation.
        split: a split of the data set; slices such as `train[:10%]` and sums such as `train+validation` work.
        data_dir: TFDS's data folder; "" is its default (`$TFDS_DATA_DIR` or `~/tensorflow_datasets`).
        labelled: False: only an `image` is needed; all labels are 0, and the one class is "unlabelled".

    Raises:
        MissingDataError: the name is unknown or the data set is not prepared.
        DataError: it is not prepared for random access, the split is unknown, or it has no image or label.
    """

    def __init__(self, name: str, split: str, data_dir: str = "", *, labelled: bool = True):
        import tensorflow_datasets as tfds  # imported here because it is optional

        where = data_dir or "TFDS's default folder"
        known, remedy = known_set(name), how_to_get(name, data_dir)
        self._name, self._split = name, split
        try:
            builder = tfds.builder(name, data_dir=data_dir or None)
        except Exception as error:  # unknown name or version, or a package that the data set needs is missing
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            correct = "correct data.name, or " if known is None else ""
            raise MissingDataError(
                f"TFDS data set {name!r} in {where}: {reason.rstrip('.')}; {correct}{remedy}"
            ) from error
        if not builder.info.splits:
            raise MissingDataError(f"TFDS data set {name!r} is not prepared in {where}: {remedy}")
        features = builder.info.features
        self._label_key = "label" if known is None else known.label_key
        label: Any = dict(features).get(self._label_key)
        self.multi_label = labelled and isinstance(label, tfds.features.Sequence)
        label = label.feature if self.multi_label else label
        self._labelled = labelled
        if not labelled and "image" not in features:
            raise DataError(
                f"TFDS data set {name!r} has the features {', '.join(features)}; it needs `image`; choose another"
            )
        if labelled and ("image" not in features or not getattr(label, "names", None)):
            raise DataError(
                f"TFDS data set {name!r} has the features {', '.join(features)}; it needs `image` and a class "
                f"`{self._label_key}`; choose another or use data.source=folder"
            )
        try:
            self._records = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        except NotImplementedError as error:
            raise DataError(
                f"TFDS data set {name!r} in {where} is stored in a format without random access: {remedy}"
            ) from error
        except ValueError as error:
            raise DataError(
                f"TFDS data set {name!r} has no split {split!r} (it has {', '.join(builder.info.splits)}); set "
                "data.train_split and data.eval_split"
            ) from error
        self.class_names = tuple(label.names) if labelled else UNLABELLED
        shards = {name: list(info.shard_lengths or ()) for name, info in sorted(builder.info.splits.items())}
        self._fingerprint = digest(builder.info.full_name.encode(), split.encode(), repr(shards).encode())

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        record = self._records[index]
        image = record["image"]
        if hasattr(image, "read"):  # TFDS without TensorFlow may return an open file
            image.seek(0)
            image = image.read()
        image = image if isinstance(image, np.ndarray) else bytes(image)
        if not self._labelled:
            return Example(image, 0)
        if self.multi_label:
            return Example(image, tuple(np.asarray(record[self._label_key]).astype(int).tolist()))
        label = int(record[self._label_key])
        if label < 0:  # TFDS's value for the withheld labels of test splits, e.g. imagenet2012's
            raise DataError(
                f"{self.describe(index)}: has no label (test split?); set data.eval_split to a labelled split"
            )
        return Example(image, label)

    def file_name(self, index: int) -> str:
        """Returns the name of the file that held image `index`; "" if the data set does not record it."""
        name = self._records[index].get("file_name", b"")
        return name.decode() if isinstance(name, bytes) else str(name)

    def describe(self, index: int) -> str:
        """Returns the data set's name, split and the index."""
        return f"image {index} of TFDS {self._name} ({self._split})"

    def fingerprint(self) -> str:
        """Digest of the data set's name, configuration and version, the lengths of its shards, and the split."""
        return self._fingerprint
