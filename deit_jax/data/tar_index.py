"""The index of tar shards: where every image is, in the order of a folder of the same images.

It is made once, by reading the shards' headers in parallel, and cached like the list of a folder's files (folder_index.py).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from deit_jax import console
from deit_jax.data.file_names import RULES, describe_skipped
from deit_jax.data.folder import SETTLED_SECONDS, SMALLEST_INDEXED
from deit_jax.data.folder_index import index_file, write_arrays
from deit_jax.data.shards import Shards
from deit_jax.data.sources import UNLABELLED, DataError
from deit_jax.data.tar_files import TarListing, list_tar
from deit_jax.printable import is_utf8, printable

_VERSION = 1
_THREADS = 16  # a network disk handles many concurrent requests as fast as one
_REPORT_SECONDS = 5.0
_AHEAD = 8 << 20  # bytes, of a shard in a bucket
_NUMBER = re.compile(r"-?\d{1,18}", re.ASCII)
Lister = Callable[[str, Any], TarListing]  # arguments as of `list_tar`
MAX_CLASSES = 1_000_000  # larger numbers are not classes but, e.g., identities of images


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """The images of a split's shards, sorted by class, folder and file name, as in a folder of the same images."""

    names: np.ndarray  # uint8, concatenated paths within the shards
    ends: np.ndarray  # int64[N]: end of each path
    labels: np.ndarray  # int32[N]
    shards: np.ndarray  # int32[N]: number of the shard
    offsets: np.ndarray  # int64[N]: of the image in it, bytes
    sizes: np.ndarray  # int64[N]: bytes
    classes: np.ndarray  # uint8, JSON: class names; null if labels are numbers
    skipped: np.ndarray  # uint8, JSON: number of skipped files by kind
    state: np.ndarray  # uint8, JSON: [name, bytes, modification time] of each shard

    def name(self, index: int) -> str:
        """Returns the path of an image within its shard."""
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.names[start : self.ends[index]].tobytes())

    def class_names(self) -> tuple[str, ...] | None:
        """Returns the names of the classes; None if the labels are numbers."""
        names = json.loads(self.classes.tobytes())
        return None if names is None else tuple(names)

    def note(self, where: str) -> str:
        """Returns a line about skipped files; "" if there are none."""
        skipped = json.loads(self.skipped.tobytes())
        return f"skipped in {where}: {describe_skipped(skipped)}" if skipped else ""


def open_index(shards: Shards, place: str, *, lister: Lister | None = None, labelled: bool = True) -> TarIndex:
    """Returns the index of some shards, from its file if that is current; place: as `data.index`.

    lister: lists the images of each file; None: `list_tar`. labelled: False: all images have one class, "unlabelled".

    Raises:
        DataError: a shard cannot be read (see `list_tar`), there are no images, or they have no labels or negative ones.
    """
    state = json.dumps(shards.state()).encode()
    place_of = shards.path(0) if shards.remote else os.path.realpath(shards.path(0))
    kind = b"tar" if labelled else b"unlabelled tar"
    kind = kind if lister is None else b"files in a tar"
    path = index_file(kind + b"\0" + os.fsencode(place_of), place)
    if path is not None:
        try:
            with np.load(path, allow_pickle=False) as file:
                current = int(file["version"]) == _VERSION and str(file["rules"]) == RULES
                if current and file["state"].tobytes() == state:
                    index = TarIndex(**{field.name: file[field.name] for field in dataclasses.fields(TarIndex)})
                    index.class_names(), index.note("")
                    lengths = {
                        len(each) for each in (index.ends, index.labels, index.shards, index.offsets, index.sizes)
                    }
                    if len(lengths) == 1 and index.ends[-1] == len(index.names):
                        return index
        except Exception:  # missing or damaged: read the shards again
            pass
    began = time.time()
    lister = lister or (list_tar if labelled else functools.partial(list_tar, labelled=False))
    index = _join(shards, _list_all(shards, lister), state, labelled)
    settled = bool(shards.remote) or max(int(time) for _, _, time in shards.state()) < (began - SETTLED_SECONDS) * 1e9
    if path is not None and settled and len(index.labels) >= SMALLEST_INDEXED:
        write_arrays(path, version=_VERSION, rules=RULES, **dataclasses.asdict(index))
    return index


def _list_one(shards: Shards, number: int, lister: Lister) -> TarListing:
    return lister(shards.path(number), shards.stored(number, ahead=_AHEAD) if shards.remote else None)


def _list_all(shards: Shards, lister: Lister) -> list[TarListing]:
    found: list[TarListing] = []
    reported = time.monotonic()
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting = [pool.submit(_list_one, shards, number, lister) for number in range(len(shards.files))]
        try:
            for future in waiting:
                found.append(future.result())
                if time.monotonic() - reported > _REPORT_SECONDS:
                    reported = time.monotonic()
                    where = printable(shards.root)
                    console.say(f"indexing the tar shards of {where}, once: {len(found):,} of {len(waiting):,}")
        finally:
            pool.shutdown(cancel_futures=True)
    return found


def _join(shards: Shards, found: list[TarListing], state: bytes, labelled: bool) -> TarIndex:
    images = [image for one in found for image in one.images]
    skipped = sum((one.skipped for one in found), Counter[str]())
    if not images:
        raise DataError(
            f"{printable(shards.path(0))}{' and others' if len(found) > 1 else ''}: no images"
            + (f", only {describe_skipped(skipped)}" if skipped else "")
            + "; correct data.path or the split"
        )
    _check_kinds(shards, found)
    _check_copies(shards, found)
    numbers = np.repeat(np.arange(len(found), dtype=np.int32), [len(one.images) for one in found])

    def where(index: int) -> str:
        return f"{printable(images[index].name)} in {printable(shards.path(numbers[index]))}"

    names, texts = [image.name for image in images], [label for one in found for label in one.labels]
    labels: Sequence[int]
    classes: list[str] | None
    if not labelled:
        labels, classes = [0] * len(names), [*UNLABELLED]
    elif texts[0]:
        labels, classes = _labels(texts, where)
    else:
        names = _without_common_folders(names)
        labels, classes = _folder_labels(names, where)
    paths = [name.rpartition("/") for name in names]
    order = sorted(range(len(images)), key=lambda i: (labels[i], paths[i][0], paths[i][2], numbers[i]))
    encoded = [os.fsencode(names[i]) for i in order]
    return TarIndex(
        names=np.frombuffer(b"".join(encoded), np.uint8),
        ends=np.cumsum([len(name) for name in encoded], dtype=np.int64),
        labels=np.asarray([labels[i] for i in order], np.int32),
        shards=numbers[order],
        offsets=np.asarray([images[i].offset for i in order], np.int64),
        sizes=np.asarray([images[i].size for i in order], np.int64),
        classes=np.frombuffer(json.dumps(classes).encode(), np.uint8),
        skipped=np.frombuffer(json.dumps(skipped).encode(), np.uint8),
        state=np.frombuffer(state, np.uint8),
    )


def _labels(texts: list[str], where: Callable[[int], str]) -> tuple[list[int], list[str] | None]:
    """Returns labels and class names, None if the labels are numbers."""
    distinct = set(texts)
    if not all(map(_NUMBER.fullmatch, distinct)):
        return _by_name(texts, sorted(distinct))
    labels = [int(text) for text in texts]
    lowest, highest = min(labels), max(labels)
    if lowest < 0 or highest >= MAX_CLASSES:
        wrong = lowest if lowest < 0 else highest
        raise DataError(
            f"{where(labels.index(wrong))}: has the label {wrong}, which is not a class (of a test split?); use one with labels"
        )
    return labels, None


def _folder_labels(names: list[str], where: Callable[[int], str]) -> tuple[list[int], list[str]]:
    texts = [name.partition("/")[0] if "/" in name else "" for name in names]
    if "" in texts:
        raise DataError(
            f"{where(texts.index(''))}: has no label; add a .cls file, a .json file with the field label or cls, or a folder "
            "with the name of the class"
        )
    classes = sorted(set(texts))
    if all(name.isascii() and name.isdigit() for name in classes):
        classes.sort(key=int)
    for name in classes:
        if not is_utf8(name):
            raise DataError(f"{where(texts.index(name))}: the name of its class is not UTF-8; pack it under another")
    return _by_name(texts, classes)


def _by_name(texts: list[str], classes: list[str]) -> tuple[list[int], list[str]]:
    numbers = {name: number for number, name in enumerate(classes)}
    return [numbers[text] for text in texts], classes


def _check_kinds(shards: Shards, found: Sequence[TarListing]) -> None:
    first = ""
    for number, one in enumerate(found):
        for image, kind in zip(one.images, one.kinds, strict=True):
            first = first or kind
            if kind != first:
                raise DataError(
                    f"{printable(image.name)} in {printable(shards.path(number))}: its label is in its {kind}, those of earlier "
                    f"images are in their {first}; give all images the same kind of label"
                )


def _without_common_folders(names: list[str]) -> list[str]:
    """Removes the folders that all images share, if a folder remains for each: train/CLASS/NAME becomes CLASS/NAME."""
    while True:
        first = names[0].partition("/")[0] + "/"
        if not all(name.startswith(first) and "/" in name[len(first) :] for name in names):
            return names
        names = [name[len(first) :] for name in names]


def _check_copies(shards: Shards, found: Sequence[TarListing]) -> None:
    """Raises DataError if two shards hold the same images, e.g. a file that was downloaded twice."""
    known: dict[tuple[tuple[str, int], ...], int] = {}
    for number, one in enumerate(found):
        if not one.images:
            continue
        other = known.setdefault(tuple((image.name, image.size) for image in one.images), number)
        if other != number:
            raise DataError(
                f"{printable(shards.path(other))} and {printable(shards.path(number))} hold the same images; remove one of them"
            )
