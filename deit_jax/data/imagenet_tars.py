"""ImageNet's three files as downloaded from image-net.org, as an image source, without unpacking them.

The training file has a tar file per class, named after its WordNet id. The validation file has the images alone; the development
kit has their classes as numbers, and in meta.mat the WordNet ids of these numbers.
"""

from __future__ import annotations

import functools
import io
import os
import re
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from deit_jax import console
from deit_jax.data.shards import Shards, find_shards
from deit_jax.data.sources import DataError, MissingDataError, Split
from deit_jax.data.split_folders import split_words
from deit_jax.data.splits import split_name
from deit_jax.data.stored_files import LocalFile, StoredFile, stored_bytes
from deit_jax.data.tar_files import FOLDER, Member, TarListing, list_tar, members_of
from deit_jax.data.tar_shards import TarSource
from deit_jax.printable import printable

TRAIN, VALIDATION, KIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
_META, _TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
_NUMBERED = re.compile(r".*_(\d{8})\.JPEG", re.ASCII)
_THREADS = 16
_REPORT_SECONDS = 5.0


def open_imagenet_tars(data: Any, split: Split, flags: str) -> TarSource:
    """Opens the training or validation images of the files in `data.path`, in the order of the unpacked folders.

    Raises:
        MissingDataError: a file is missing, or there is no such split.
        DataError: a file is damaged, or the files do not belong together.
    """
    expression = data.train_split if split == "train" else data.eval_split
    name = split_name(expression) if expression else ""
    if name.lower() in split_words("train"):
        return TarSource(_file(data, TRAIN, flags), data.index, lister=_list_classes)
    if name.lower() not in split_words("validation"):
        raise MissingDataError(
            f"{printable(data.path)}: ImageNet's files have no split {name!r}; set the split to train or validation"
        )
    shards = _file(data, VALIDATION, flags)
    return TarSource(shards, data.index, lister=functools.partial(_list_validation, os.path.join(shards.root, KIT)))


def _file(data: Any, name: str, flags: str) -> Shards:
    path = os.path.join(data.path, name)
    try:
        return find_shards(path, "", ".tar", flags=flags, copies_gib=data.copies_gib)
    except MissingDataError as error:
        raise MissingDataError(
            f"{printable(path)}: no such file; set {flags}path to the folder of ImageNet's files as downloaded: "
            f"{TRAIN}, {VALIDATION}, {KIT}"
        ) from error


class _Inside:
    """A file within a file."""

    def __init__(self, file: StoredFile, offset: int, size: int):
        self.size, self._file, self._offset = size, file, offset

    def read(self, size: int, offset: int) -> bytes:
        """Returns `size` bytes from `offset`, fewer at the file's end; raises OSError."""
        return self._file.read(max(min(size, self.size - offset), 0), self._offset + offset)


def _list_classes(path: str, file: StoredFile | None) -> TarListing:
    """Lists the images in the tar files within a tar file as WNID/NAME."""
    try:
        outer = file or LocalFile(path)
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({error.strerror}); restore the file") from error
    inner = [member for member, _ in members_of(path, outer) if member.name.endswith(".tar")]
    if not inner:
        raise DataError(f"{printable(path)}: has no tar file per class; download it again, or use data.source=tar")

    def listed(member: Member) -> list[Member]:
        found = list_tar(f"{path}/{member.name}", _Inside(outer, member.offset, member.size), labelled=False)
        folder = member.name.removesuffix(".tar")
        return [Member(f"{folder}/{name}", member.offset + offset, size) for name, offset, size in found.images]

    images, reported = list[Member](), time.monotonic()
    with ThreadPoolExecutor(_THREADS if file is None else 1) as pool:  # a bucket's is read ahead, by one thread
        for number, found in enumerate(pool.map(listed, inner), start=1):
            images += found
            if time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                console.say(f"indexing {printable(path)}, once: {number:,} of {len(inner):,} classes")
    return _in_folders(images)


def _list_validation(kit: str, path: str, file: StoredFile | None) -> TarListing:
    """Lists the validation images as WNID/NAME. kit: the path of the development kit."""
    classes = _read_kit(kit)
    images = list[Member]()
    for name, offset, size in list_tar(path, file, labelled=False).images:
        match = _NUMBERED.fullmatch(name)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(classes):
            raise DataError(
                f"{printable(name)} in {printable(path)}: is none of the {len(classes):,} images of {printable(kit)}; use files "
                "of one version"
            )
        images.append(Member(f"{classes[number - 1]}/{name.rpartition('/')[2]}", offset, size))
    if len(images) != len(classes):
        raise DataError(
            f"{printable(path)}: has {len(images):,} images, {printable(kit)} the classes of {len(classes):,}; download it again"
        )
    return _in_folders(images)


def _in_folders(images: list[Member]) -> TarListing:
    return TarListing(images, [""] * len(images), [FOLDER] * len(images))


def _read_kit(path: str) -> list[str]:
    """Returns the WordNet id of each validation image, in the order of their numbers."""
    try:
        content = stored_bytes(path)
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({error.strerror}); restore the file") from error
    if content is None:
        raise MissingDataError(f"{printable(path)}: no such file; download it too, it has the classes of {VALIDATION}")
    try:
        from scipy.io import loadmat  # imported here because it is slow

        files = {}
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:*") as archive:
            for member in archive:
                for name in (_META, _TRUTH):
                    if member.name.endswith(name) and (opened := archive.extractfile(member)) is not None:
                        files[name] = opened.read()
        synsets = loadmat(io.BytesIO(files[_META]), squeeze_me=True)["synsets"]
        ids = {int(each["ILSVRC2012_ID"]): str(each["WNID"]) for each in synsets}
        return [ids[int(line)] for line in files[_TRUTH].split()]
    except Exception as error:  # from tarfile, zlib and scipy
        reason = printable((str(error).splitlines() or [""])[0][:100])
        raise DataError(
            f"{printable(path)}: {_META} and {_TRUTH} cannot be read from it ({type(error).__name__}: {reason}); download it "
            "again"
        ) from error
