"""The array_record shards that --mode=prepare writes, as an image source.

A folder has the shards of each split, an index of its images (where they are, labels, names, checksums), and a card, DATASET,
which is written last and has the class names and the digests of the other files.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zlib
from typing import Any

import numpy as np

from deit_jax.data.array_records import read_span
from deit_jax.data.shards import Shards, split_shards
from deit_jax.data.sources import DataError, Example, MissingDataError, Split, digest
from deit_jax.data.stored_files import stored_bytes
from deit_jax.data.tar_shards import OpenFiles
from deit_jax.printable import printable

EXTENSION = ".array_record"
DATASET = "dataset.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class ImageIndex:
    """The images of some shards, in order."""

    names: np.ndarray  # uint8, concatenated names
    ends: np.ndarray  # int64[N]: end of each name
    labels: np.ndarray  # int32[N]
    offsets: np.ndarray  # int64[N]: of the image in its shard, as in `read_span`
    sizes: np.ndarray  # int64[N]: bytes
    checksums: np.ndarray  # uint32[N]: CRC-32

    def name(self, index: int) -> str:
        """Returns the name of an image: its path in the data that it comes from."""
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.names[start : self.ends[index]].tobytes())

    def to_bytes(self, **more: np.ndarray) -> bytes:
        """Returns the content of a file with this index and other arrays."""
        file = io.BytesIO()
        arrays: dict[str, Any] = dataclasses.asdict(self) | more
        np.savez_compressed(file, **arrays)
        return file.getvalue()

    @classmethod
    def from_arrays(cls, arrays: Any) -> ImageIndex:
        """Reads the index from arrays by name, as from `np.load`. Raises ValueError and KeyError for others."""
        index = cls(**{field.name: arrays[field.name] for field in dataclasses.fields(cls)})
        count = len(index.ends)
        if any(len(getattr(index, name)) != count for name in ("labels", "offsets", "sizes", "checksums")):
            raise ValueError("its arrays have different lengths")
        return index

    @classmethod
    def join(cls, parts: list[ImageIndex]) -> ImageIndex:
        """Joins the indices of successive shards."""
        fields = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(cls)
        }
        starts = np.cumsum([0, *(len(part.names) for part in parts[:-1])])
        fields["ends"] = np.concatenate([part.ends + start for part, start in zip(parts, starts, strict=True)])
        return cls(**fields)


class PreparedSource:
    """The images of a split of a prepared folder, in stored order.

    Args:
        shards: the split's files.
        card: the content of DATASET.
        split: the split's name there.

    Raises:
        DataError: a shard is missing or of another length than written, or the index is damaged.
    """

    def __init__(self, shards: Shards, card: dict[str, Any], split: str):
        self._shards, facts, where = shards, card["splits"][split], printable(shards.root)
        written = {shard["file"]: shard["bytes"] for shard in facts["shards"]}
        for name, size, _ in shards.state():
            if written.get(name) != size:
                raise DataError(
                    f"{where}: {printable(name)} has {size:,} bytes, {written.get(name, 0):,} were written; copy it again"
                )
        if len(shards.files) < len(written):
            raise DataError(
                f"{where}: {len(written):,} shards were written for {split}, {len(shards.files):,} are given; set data.path to "
                f"the folder, and data.{'train' if split == 'train' else 'eval'}_split for a part of the images"
            )
        self._index = _read_index(os.path.join(shards.root, facts["index"]["file"]), facts["index"]["digest"])
        self._firsts = np.cumsum([0, *(shard["images"] for shard in facts["shards"])])  # int64[S + 1]
        if not len(self._index.labels) == self._firsts[-1] == facts["images"]:
            raise DataError(f"{where}: {DATASET} and the index of {split} differ; copy the folder again")
        self.labels = self._index.labels  # int32 [N]
        self.class_names = tuple(card["class_names"])
        self.notes = (*shards.notes, *_note(card, facts, where))
        self._fingerprint = facts["fingerprint"]
        self._files = OpenFiles(shards)

    def __len__(self) -> int:
        return len(self.labels)

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._firsts, index, side="right")) - 1

    def __getitem__(self, index: int) -> Example:
        size = int(self._index.sizes[index])
        try:
            content = read_span(self._files[self._shard(index)], int(self._index.offsets[index]), size)
        except OSError as error:
            raise DataError(
                f"{self.describe(index)}: cannot be read ({error.strerror}); restore the file or start again"
            ) from error
        if len(content) < size or zlib.crc32(content) != self._index.checksums[index]:
            raise DataError(f"{self.describe(index)}: is damaged; the command that wrote the shards repairs them")
        return Example(content, int(self.labels[index]))

    def relative_path(self, index: int) -> str:
        """Returns the image's path in the data that it comes from."""
        return self._index.name(index)

    def file_name(self, index: int) -> str:
        """Returns the name of the file that it comes from, without folders."""
        return self._index.name(index).rpartition("/")[2]

    def describe(self, index: int) -> str:
        """Returns the image's name, and the shard's path."""
        return f"{printable(self._index.name(index))} in {printable(self._shards.path(self._shard(index)))}"

    def fingerprint(self) -> str:
        """Digest of the images that were prepared; that of their source if they are unchanged."""
        return self._fingerprint


def open_prepared(data: Any, split: Split, flags: str) -> PreparedSource:
    """Opens a split of `data.path`; see `split_shards`."""
    try:
        shards = split_shards(data, split, EXTENSION, flags)
    except MissingDataError:
        if os.path.isdir(data.path) and any(f"{EXTENSION}-" in name for name in os.listdir(data.path)):
            raise DataError(
                f"{printable(data.path)} holds a data set of TFDS: use data.source=tfds with its name, and data.path the folder "
                "above its name"
            ) from None
        raise
    card = read_card(shards.root)
    if card is None:
        raise DataError(
            f"{printable(shards.root)}: has no {DATASET}, which is written last; repeat the command (--mode=prepare), which "
            "continues, or copy the whole folder"
        )
    names = [name for name, facts in card["splits"].items() if facts["shards"][0]["file"] in shards.files]
    if not names:
        raise DataError(f"{printable(shards.root)}: {DATASET} describes other shards; copy the whole folder")
    return PreparedSource(shards, card, names[0])


def read_card(root: str) -> dict[str, Any] | None:
    """Returns the content of a prepared folder's DATASET; None if there is none.

    Raises:
        DataError: it cannot be read, or is not one.
    """
    path = os.path.join(root, DATASET)
    try:
        content = stored_bytes(path)
        if content is None:
            return None
        card = json.loads(content)
        if card["format"] > FORMAT:
            raise DataError(
                f"{printable(path)}: written by a later version of deit_jax (format {card['format']}); use that"
            )
        if not {"class_names", "splits", "preparation"} <= card.keys():
            raise ValueError
    except DataError:
        raise
    except OSError as error:
        raise DataError(
            f"{printable(path)}: cannot be read ({error.strerror}); check the address and your access"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{printable(path)}: is not a card of prepared images; copy the folder again") from error
    return card


def _read_index(path: str, expected: str) -> ImageIndex:
    try:
        content = stored_bytes(path)
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({error.strerror}); restore the file") from error
    if content is None or digest(content) != expected:
        raise DataError(f"{printable(path)}: is {'missing' if content is None else 'damaged'}; copy the folder again")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return ImageIndex.from_arrays(arrays)


def _note(card: dict[str, Any], facts: dict[str, Any], where: str) -> list[str]:
    settings, notes = card["preparation"]["settings"], []
    if facts["resized"]:
        notes.append(
            f"{facts['resized']:,} of {facts['images']:,} images in {where} were resized to a shortest side of "
            f"{settings['shortest_side']} pixels (JPEG, quality {settings['quality']})"
        )
    if facts["left_out"]:
        notes.append(f"{facts['left_out']:,} images could not be read when {where} was written, and are left out")
    return notes
