"""Parquet files, as on the Hugging Face hub, as an image source: columns found by type, and row groups kept in memory.

A row group is the smallest part of a Parquet file that can be read, so a random image costs its whole row group unless that is in
memory. Images are in stored order.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from deit_jax.config import default_config
from deit_jax.data.other_layouts import MAIN
from deit_jax.data.shards import Shards, split_shards
from deit_jax.data.sources import UNLABELLED, DataError, Example, Split, UnusableError, digest
from deit_jax.data.split_folders import words_of
from deit_jax.data.stored_files import as_python_file
from deit_jax.data.tar_index import MAX_CLASSES
from deit_jax.data.tar_shards import number_names
from deit_jax.printable import printable

CACHE_BYTES = 512 << 20  # of row groups, per process
# An image whose share of row groups to read is larger takes more than twice the time of a file (docs/data.md).
_SLOW_BYTES = 3 << 20
_THREADS = 16
_LABEL_WORDS = ("label", "class", "cls", "category", "target")


class ParquetSource:
    """The images of Parquet files, in stored order.

    The image column holds encoded files, as binary or as a struct with the field `bytes`. Labels are integers, texts, or the
    hub's ClassLabel, whose names are in the file's metadata. Other integers have names as in `TarSource`; texts are the class
    names.

    Args:
        shards: the split's files.
        columns: names of the image or label column, separated by commas, if the types leave a choice.
        labelled: False: labels are not read; all images have one class, "unlabelled".

    Raises:
        DataError: pyarrow is not installed; a file cannot be read or has other columns; the image or label column is missing, or
            more than one fits; or a label is missing or not a class.
    """

    def __init__(self, shards: Shards, columns: str = "", *, labelled: bool = True):
        self._shards = shards
        where = printable(shards.path(0))
        with _open(shards, 0) as first:
            schema = first.schema_arrow
        features = _features(schema)
        wanted = [name.strip() for name in columns.split(",") if name.strip()]
        image, label = _choose(schema, features, wanted, where, labelled)
        used = [image, label] if labelled else [image]
        kind = schema.field(image).type
        self._leaf = f"{image}.bytes" if _is_struct(kind) else image
        self._path = f"{image}.path" if _is_struct(kind) and kind.get_field_index("path") >= 0 else ""

        def read(number: int) -> tuple[np.ndarray, np.ndarray, Any]:
            with _open(shards, number) as file:
                for name in used:
                    index = file.schema_arrow.get_field_index(name)
                    if index < 0 or file.schema_arrow.field(index).type != schema.field(name).type:
                        raise DataError(
                            f"{printable(shards.path(number))}: its column {printable(name)} is missing or of another type than "
                            f"in {where}; use files of one data set"
                        )
                values = _read_column(shards, number, file, label) if labelled else None
                return *_groups(file, self._leaf), values

        with ThreadPoolExecutor(_THREADS) as pool:
            rows, sizes, values = zip(*pool.map(read, range(len(shards.files))), strict=True)
        self._sizes = np.concatenate(sizes)  # int64[G]: bytes of images in each row group
        self._files = np.repeat(np.arange(len(rows)), [len(each) for each in rows])  # int64[G]
        self._first_groups = np.searchsorted(self._files, np.arange(len(rows)))  # int64[F]
        self._ends = np.cumsum(np.concatenate(rows))  # int64[G]: of each row group, in rows of the split
        self._first_rows = np.cumsum([0, *(each.sum() for each in rows)])  # int64[F + 1]
        names: tuple[str, ...] | None = UNLABELLED
        self.labels = np.zeros(len(self), np.int32)  # int32 [N]
        if labelled:
            self.labels, names = self._read_labels(values)
        notes = list(shards.notes)
        known = features.get(label, {}).get("names") if isinstance(features.get(label), dict) else None
        if names is None and isinstance(known, list):
            names = tuple(map(str, known))
        limit = MAX_CLASSES if names is None else len(names)
        if (wrong := np.flatnonzero((self.labels < 0) | (self.labels >= limit))).size:
            raise DataError(
                f"{self.describe(int(wrong[0]))}: has the label {self.labels[wrong[0]]}, which is none of the {limit:,} classes "
                "(of a test split?); use a split with labels"
            )
        if names is None:
            names, note = number_names(shards, int(self.labels.max(initial=0)) + 1)
            notes += [note] if note else []
        self.class_names = names
        self.notes = tuple([*notes, *self._speed_note()])
        self._cache = _RowGroups(shards)

    def _read_labels(self, columns: Sequence[Any]) -> tuple[np.ndarray, tuple[str, ...] | None]:
        """Returns all labels, and the class names of texts."""
        import pyarrow as pa

        column = pa.chunked_array([chunk for each in columns for chunk in each.chunks], columns[0].type)
        if column.null_count:
            first = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise DataError(f"{self.describe(first)}: has no label; use a split with labels, or remove the row")
        if pa.types.is_integer(column.type):
            numbers = column.to_numpy().astype(np.int64)
            return np.clip(numbers, -1, np.iinfo(np.int32).max - 1).astype(np.int32), None
        texts = column.to_pylist()
        names = sorted(set(texts))
        where = {name: number for number, name in enumerate(names)}
        return np.asarray([where[text] for text in texts], np.int32), tuple(names)

    def _speed_note(self) -> Iterable[str]:
        total = int(self._sizes.sum())
        rows = np.diff(self._ends, prepend=0)
        # A random image reads its row group unless that is one of those in memory.
        read = float((rows * self._sizes).sum()) / max(len(self), 1) * max(1 - CACHE_BYTES / max(total, 1), 0)
        if read > _SLOW_BYTES:
            yield (
                f"row groups of {int(np.median(rows)):,} images ({np.median(self._sizes) / 1e6:.0f} MB): in random order each "
                "image reads a whole one, which is slow; --mode=prepare writes shards that are read by image"
            )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Example:
        image = self._value(index, self._leaf)
        if image is None:
            raise UnusableError(f"{self.describe(index)}: the row has no image; remove it")
        return Example(image, int(self.labels[index]))

    def _value(self, index: int, leaf: str) -> Any:
        group = int(np.searchsorted(self._ends, index, side="right"))
        file = int(self._files[group])
        column = self._cache.get(file, group - int(self._first_groups[file]), leaf)
        start = int(self._ends[group - 1]) if group else 0
        return column[index - start].as_py()

    def file_name(self, index: int) -> str:
        """Returns the name of the file that held the image; "" if the data does not record it."""
        return str(self._value(index, self._path) or "").rpartition("/")[2] if self._path else ""

    def describe(self, index: int) -> str:
        """Returns the image's row and file; rows count from 0."""
        file = int(np.searchsorted(self._first_rows, index, side="right")) - 1
        return f"row {index - int(self._first_rows[file]):,} of {printable(self._shards.path(file))}"

    def fingerprint(self) -> str:
        """Digest of the labels, and of the numbers of rows and bytes in each row group."""
        return digest(self.labels, self._ends, self._sizes)


def open_parquet(data: Any, split: Split, flags: str) -> ParquetSource:
    """Opens a split of `data.path`; see `split_shards`."""
    shards = split_shards(data, split, ".parquet", flags)
    return ParquetSource(shards, "" if data.name == default_config().data.name else data.name)


def open_unlabelled_parquet(data: Any) -> ParquetSource:
    """Opens the split of unlabelled images of `data.path`."""
    return ParquetSource(split_shards(data, "train", ".parquet", MAIN), data.name, labelled=False)


class _RowGroups:
    """The image columns of the row groups read last, at most CACHE_BYTES. Each process has its own."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._groups: OrderedDict[tuple[int, int, str], _RowGroup] = OrderedDict()
        self._bytes = 0
        self._metadata: dict[int, Any] = {}  # of each file, which takes longer to read than a small row group
        self._lock = threading.Lock()

    def get(self, file: int, number: int, leaf: str) -> Any:
        """Returns a column of row group `number` of a file, a chunked array of pyarrow; threads share one reading."""
        key = file, number, leaf
        with self._lock:
            group = self._groups.setdefault(key, _RowGroup())
            self._groups.move_to_end(key)
        with group.lock:
            if group.column is not None:
                return group.column
            group.column = _read_group(self._shards, file, number, leaf, self._metadata)
        with self._lock:
            if self._groups.get(key) is group:
                group.counted = group.column.nbytes
                self._bytes += group.counted
            while len(self._groups) > 1 and self._bytes > CACHE_BYTES:
                self._bytes -= self._groups.popitem(last=False)[1].counted
        return group.column

    def __reduce__(self) -> Any:
        return _RowGroups, (self._shards,)


class _RowGroup:
    def __init__(self) -> None:
        self.column: Any = None
        self.counted = 0  # bytes
        self.lock = threading.Lock()


def _open(shards: Shards, number: int, metadata: Any = None) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(f"data.source=parquet needs pyarrow ({error}): pip install pyarrow") from error
    try:
        file = as_python_file(shards.stored(number)) if shards.remote else shards.path(number)
        return pq.ParquetFile(file, metadata=metadata)
    except Exception as error:  # ArrowInvalid, OSError, and others for a damaged footer
        raise DataError(
            f"{printable(shards.path(number))}: not a readable Parquet file, it may be truncated or a pointer of Git LFS "
            f"({_reason(error)}); copy it again"
        ) from error


def _read_column(shards: Shards, number: int, file: Any, name: str) -> Any:
    try:
        return file.read([name], use_threads=False).column(0)
    except Exception as error:
        raise DataError(
            f"{printable(shards.path(number))}: column {printable(name)} cannot be read ({_reason(error)}); copy the file again"
        ) from error


def _read_group(shards: Shards, file: int, number: int, leaf: str, metadata: dict[int, Any]) -> Any:
    try:
        with _open(shards, file, metadata.get(file)) as opened:
            metadata[file] = opened.metadata
            return opened.read_row_group(number, [leaf], use_threads=False).flatten().column(0)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{printable(shards.path(file))}: row group {number} cannot be read ({_reason(error)}); copy the file again"
        ) from error


def _reason(error: Exception) -> str:
    return printable((str(error).splitlines() or [type(error).__name__])[0][:120].rstrip("."))


def _groups(file: Any, leaf: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of rows and the bytes of images of each row group of a file, int64."""
    metadata = file.metadata
    names = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    rows = np.asarray([group.num_rows for group in groups], np.int64)
    return rows, np.asarray([group.column(names.index(leaf)).total_uncompressed_size for group in groups], np.int64)


def _features(schema: Any) -> dict[str, Any]:
    """Returns the hub's description of the columns; empty if the file has none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return features if isinstance(features, dict) else {}
    except (KeyError, TypeError, ValueError):
        return {}


def _is_struct(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind)


def _choose(schema: Any, features: dict[str, Any], wanted: list[str], where: str, labelled: bool) -> tuple[str, str]:
    """Returns the names of the image and the label column; "" for the latter unless `labelled`."""
    import pyarrow as pa

    def is_binary(kind: Any) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    def is_image(field: Any) -> bool:
        if _is_struct(field.type):
            index = field.type.get_field_index("bytes")
            return index >= 0 and is_binary(field.type.field(index).type)
        return is_binary(field.type)

    def is_label(field: Any) -> bool:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)

    def kind_of(name: str) -> str:
        feature = features.get(name)
        return str(feature.get("_type", "")) if isinstance(feature, dict) else ""

    for name in wanted:
        if name not in schema.names:
            raise DataError(
                f"{where}: has no column {printable(name)} (it has {_listed(schema.names)}); set data.name to the columns to use"
            )
    found = []
    for what, fits, kind, words in (
        ("image", is_image, "Image", ("image", "img", "jpg", "png")),
        ("label", is_label, "ClassLabel", _LABEL_WORDS),
    )[: 2 if labelled else 1]:
        names = [field.name for field in schema if fits(field)]
        for chosen in (
            [name for name in names if name in wanted],
            [name for name in names if kind_of(name) == kind],
            [name for name in names if not set(words).isdisjoint(words_of(name))],
        ):
            if chosen:
                names = chosen
                break
        if not names:
            needs = "binary, or a struct with bytes" if what == "image" else "integers or texts"
            raise DataError(
                f"{where}: has no {what} column ({needs}) among {_listed(schema.names)}; correct data.path, or use files with "
                "images and labels"
            )
        if len(names) > 1:
            raise DataError(
                f"{where}: has the {what} columns {_listed(names)}; choose one, e.g. --config.data.name={names[0]}"
            )
        found.append(names[0])
    return found[0], found[1] if labelled else ""


def _listed(names: list[str]) -> str:
    return ", ".join(map(printable, names[:8])) + (", ..." if len(names) > 8 else "")
