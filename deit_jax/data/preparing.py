"""Writes images of any source as array_record shards: `prepare`. prepared.py reads them.

Shards have a fixed number of images of the source, so each is written independently of the others, by threads or processes. A
finished shard has a file in PARTS with its images and its digest; the parts become the index of the split at the end.
"""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from deit_jax import console
from deit_jax.data.array_records import encode_example, locate_images, open_writer, read_span
from deit_jax.data.classes import difference
from deit_jax.data.decoding import decode, with_shorter_side
from deit_jax.data.output_folder import OutputFolder, digest_of
from deit_jax.data.pillow_images import muted
from deit_jax.data.prepared import DATASET, EXTENSION, FORMAT, ImageIndex, read_card
from deit_jax.data.resizing import resize
from deit_jax.data.sources import DataError, ImageSource, UnusableError, digest, fingerprint_of, name_of
from deit_jax.data.stored_files import LocalFile
from deit_jax.plugins import ImportedPlugins
from deit_jax.version import __version__

_PLAN, _PARTS = "preparation.json", "parts"
_PRINT_EVERY = 10.0  # seconds between two lines of progress
_AHEAD = 4  # images read ahead, per thread


@dataclasses.dataclass(frozen=True)
class Settings:
    """How images are written.

    shortest_side: in pixels, of images whose shorter side is longer; None: all keep their bytes. quality: of the JPEG files that
    resized images become. shard_images: images per shard.
    """

    shortest_side: int | None = None
    quality: int = 95
    shard_images: int = 2000


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A shard to write: images [start, end) of a split."""

    split: str
    number: int
    of: int
    start: int
    end: int

    @property
    def file(self) -> str:
        return f"{self.split}-{self.number:05}-of-{self.of:05}{EXTENSION}"

    @property
    def part(self) -> str:
        return f"{_PARTS}/{self.split}-{self.number:05}.npz"


@dataclasses.dataclass(frozen=True)
class _Part:
    """What is recorded about a written shard."""

    index: ImageIndex
    facts: dict[str, Any]  # "file", "images", "bytes", "digest", "resized", "left_out"

    def to_bytes(self) -> bytes:
        return self.index.to_bytes(facts=np.frombuffer(json.dumps(self.facts).encode(), np.uint8))

    @classmethod
    def from_bytes(cls, content: bytes | None) -> _Part | None:
        """Reads a part; None if there is none, or it is damaged: its shard is written again."""
        try:
            with np.load(io.BytesIO(content or b""), allow_pickle=False) as arrays:
                return cls(ImageIndex.from_arrays(arrays), json.loads(arrays["facts"].tobytes()))
        except Exception:  # from NumPy, zipfile, zlib or json
            return None


@dataclasses.dataclass(frozen=True)
class _Work:
    """Everything that a process needs to write shards."""

    plugins: ImportedPlugins  # first, so that they are imported before the sources, which may need them
    sources: dict[str, ImageSource]
    folder: OutputFolder
    settings: Settings
    replace: bool
    num_threads: int

    def write(self, shard: _Shard) -> _Part:
        """Writes a shard, reads it again, and returns its part, which is not written."""
        with self.folder.writing(shard.file) as path:
            part = _write(self, shard, path)
        return part


def prepare(
    sources: Mapping[str, ImageSource],
    folder: OutputFolder,
    settings: Settings,
    *,
    origin: Mapping[str, Any],
    on_bad_image: str = "stop",
    num_workers: int = 0,
    num_threads: int = 1,
) -> dict[str, Any]:
    """Writes the images of each split to a folder, or continues there; returns the content of DATASET.

    Shards that an earlier start has finished are kept if their digests agree. In a complete folder damaged shards are written
    again.

    Args:
        sources: the images by split. All have the same classes.
        folder: empty, or of an earlier start.
        settings: how the images are written.
        origin: where they come from, for DATASET.
        on_bad_image: for an image that cannot be read: "stop", or "replace", which leaves it out.
        num_workers: processes, each of which writes a shard at a time; 0: this one.
        num_threads: reading and resizing images, per process.

    Raises:
        DataError: the folder has other files, or the same of other images or settings; an image cannot be read; or a file cannot
            be written.
    """
    first = next(iter(sources.values()))
    for split, source in sources.items():
        if tuple(source.class_names) != tuple(first.class_names):
            raise DataError(
                f"the classes of the {split} images differ from the training images' "
                f"({difference(source.class_names, first.class_names)}): prepare images of the same classes, or one split "
                "(--splits=train)"
            )
    plan = {
        "settings": dataclasses.asdict(settings),
        "class_names": digest("\0".join(first.class_names).encode()),
        "splits": {name: {"images": len(each), "fingerprint": fingerprint_of(each)} for name, each in sources.items()},
    }
    work = _Work(ImportedPlugins(), dict(sources), folder, settings, on_bad_image == "replace", num_threads)
    with folder.held():
        card = read_card(folder.root)
        _check_plan(folder, plan, None if card is None else card["preparation"])
        if card is not None:
            _repair(work, card, num_workers)
            return card
        folder.write(_PLAN, json.dumps(plan).encode())
        parts = _write_all(work, num_workers)
        card = {
            "format": FORMAT,
            "written_by": f"deit_jax {__version__}",
            "origin": dict(origin),
            "preparation": plan,
            "class_names": list(first.class_names),
            "splits": {name: _join(work, name, parts[name]) for name in sources},
        }
        _describe_for_tfds(folder, card)
        folder.write(DATASET, json.dumps(card, indent=1).encode())
        folder.remove(_PARTS)
        folder.remove(_PLAN)
    return card


def _check_plan(folder: OutputFolder, plan: dict[str, Any], complete: dict[str, Any] | None) -> None:
    """Raises DataError if a folder is not empty and was not started with this plan."""
    there = complete
    if there is None:
        content = folder.read(_PLAN)
        if content is None:
            if names := folder.names():
                raise DataError(f"{folder}: is not empty (it has {names[0]}); give a new folder")
            return
        try:
            there = json.loads(content)
            assert isinstance(there, dict)
        except (ValueError, AssertionError):
            raise DataError(f"{folder}/{_PLAN}: is damaged; remove the folder, or give a new one") from None
    if there == plan:
        return
    changed = [name for name in plan if there.get(name) != plan[name]]
    what = {"settings": "other settings", "class_names": "other classes", "splits": "other images or splits"}
    raise DataError(
        f"{folder}: holds {'prepared images' if complete else 'an unfinished preparation'} with "
        f"{' and '.join(what[name] for name in changed)}; give a new folder, or remove this one"
    )


def _shards(work: _Work) -> list[_Shard]:
    found, size = [], work.settings.shard_images
    for split, source in work.sources.items():
        starts = range(0, len(source), size)
        found += [
            _Shard(split, number, len(starts), start, min(start + size, len(source)))
            for number, start in enumerate(starts)
        ]
    return found


def _write_all(work: _Work, num_workers: int) -> dict[str, list[_Part]]:
    """Writes the missing shards; returns the parts of all by split, in order."""
    folder, kept, missing = work.folder, dict[_Shard, _Part](), list[_Shard]()
    shards = _shards(work)
    for shard in shards:
        part = _Part.from_bytes(folder.read(shard.part))
        if part is not None and folder.digest(shard.file) == part.facts["digest"]:
            kept[shard] = part
        else:
            missing.append(shard)
    if kept:
        console.say(f"{len(kept):,} of {len(shards):,} shards in {folder} are finished and undamaged")
    progress = _Progress(sum(shard.end - shard.start for shard in missing))
    for shard, part in _written(work, missing, num_workers):
        folder.write(shard.part, part.to_bytes())
        kept[shard] = part
        progress.note(shard.end - shard.start)
    return {name: [kept[shard] for shard in shards if shard.split == name] for name in work.sources}


def _written(work: _Work, shards: list[_Shard], num_workers: int) -> Iterator[tuple[_Shard, _Part]]:
    """Writes shards, and yields them with their parts as they are finished."""
    if not num_workers or len(shards) < 2:
        for shard in shards:
            yield shard, work.write(shard)
        return
    pool = ProcessPoolExecutor(
        min(num_workers, len(shards)), multiprocessing.get_context("spawn"), initializer=_start, initargs=(work,)
    )
    waiting: dict[Future[_Part], _Shard] = {}
    try:
        waiting = {pool.submit(_write_in_worker, shard): shard for shard in shards}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process ended (killed, or out of memory): the same command continues, perhaps with a smaller "
            "--config.data.num_workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_work: _Work | None = None  # of a worker process


def _start(work: _Work) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends a worker when the first process is killed; otherwise it would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write_in_worker(shard: _Shard) -> _Part:
    assert _work is not None
    return _work.write(shard)


@dataclasses.dataclass(frozen=True)
class _Image:
    content: bytes
    label: int
    name: bytes
    resized: bool


def _write(work: _Work, shard: _Shard, path: str) -> _Part:
    source, bad = work.sources[shard.split], list[str]()

    def read(index: int) -> _Image | None:
        try:
            return _read(source, index, work.settings)
        except UnusableError as error:
            if not work.replace:
                raise
            bad.append(str(error))
            return None

    names, labels, sizes, checksums, resized = list[bytes](), list[int](), list[int](), list[int](), 0
    writer = open_writer(path)
    try:
        for image in _in_threads(read, range(shard.start, shard.end), work.num_threads):
            if image is None:
                continue
            writer.write(encode_example(image.content, image.label, image.name))
            names.append(image.name)
            labels.append(image.label)
            sizes.append(len(image.content))
            checksums.append(zlib.crc32(image.content))
            resized += image.resized
    finally:
        writer.close()
    for line in bad:
        console.warn(f"left out: {line}")
    file = LocalFile(path)
    try:
        offsets = locate_images(file, sizes)
    except ValueError as error:
        raise OSError(None, f"reading it again, it {error}") from error
    for offset, size, checksum in zip(offsets.tolist(), sizes, checksums, strict=True):
        if zlib.crc32(read_span(file, offset, size)) != checksum:
            raise OSError(None, "what was read again differs from what was written")
    index = ImageIndex(
        np.frombuffer(b"".join(names), np.uint8),
        np.cumsum([len(name) for name in names], dtype=np.int64),
        np.asarray(labels, np.int32),
        offsets,
        np.asarray(sizes, np.int64),
        np.asarray(checksums, np.uint32),
    )
    with open(path, "rb") as content:
        facts = {"file": shard.file, "images": len(names), "bytes": file.size, "digest": digest_of(content)}
    return _Part(index, {**facts, "resized": resized, "left_out": len(bad)})


def _in_threads(read: Callable[[int], Any], indices: range, count: int) -> Iterator[Any]:
    """Yields `read` of each index in order, read by threads, not far ahead."""
    if count < 2:
        yield from map(read, indices)
        return
    waiting = deque[Future[Any]]()
    with ThreadPoolExecutor(count) as pool:
        try:
            for index in indices:
                waiting.append(pool.submit(read, index))
                if len(waiting) > _AHEAD * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read(source: ImageSource, index: int, settings: Settings) -> _Image:
    image, label = source[index]
    if not isinstance(label, int) or not 0 <= label < len(source.class_names):
        raise UnusableError(
            f"{source.describe(index)}: label {label} is outside the {len(source.class_names)} classes; correct it"
        )
    try:
        content, resized = _as_file(image, settings)
    except DataError as error:
        raise UnusableError(f"{source.describe(index)}: {error}") from error
    return _Image(content, label, os.fsencode(name_of(source, index) or str(index)), resized)


def _as_file(image: bytes | np.ndarray, settings: Settings) -> tuple[bytes, bool]:
    """Returns an image file, and whether the image was resized. Raises DataError if it must be decoded and cannot be."""
    side = settings.shortest_side
    if side is not None and min(_size(image)) > side:
        pixels = decode(image)
        pixels = np.ascontiguousarray(resize(pixels, *with_shorter_side(*pixels.shape[:2], side)))
        return simplejpeg.encode_jpeg(pixels, settings.quality, "RGB", "444"), True
    if isinstance(image, bytes):
        return image, False
    file = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image).save(file, "PNG")
    return file.getvalue(), False


def _size(image: bytes | np.ndarray) -> tuple[int, int]:
    """Returns height and width."""
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    try:
        if image[:2] == b"\xff\xd8":
            return simplejpeg.decode_jpeg_header(image)[:2]
        with muted(), Image.open(io.BytesIO(image)) as opened:
            return opened.height, opened.width
    except Exception:  # `decode` reports what is wrong, or reads what only the header's reader rejects
        return decode(image).shape[:2]


def _join(work: _Work, split: str, parts: list[_Part]) -> dict[str, Any]:
    """Writes the index of a split and returns its facts for DATASET."""
    index, file = ImageIndex.join([part.index for part in parts]), f"{split}.index.npz"
    content = index.to_bytes()
    work.folder.write(file, content)
    resized, left_out = (sum(part.facts[name] for part in parts) for name in ("resized", "left_out"))
    base = fingerprint_of(work.sources[split])
    own = digest(index.names, index.ends, index.labels)
    changed = f"{work.settings.shortest_side} {work.settings.quality}".encode() if resized else b""
    return {
        "images": len(index.labels),
        "resized": resized,
        "left_out": left_out,
        "fingerprint": digest(base.encode(), own.encode(), changed) if resized or left_out else base or own,
        "index": {"file": file, "digest": digest(content)},
        "shards": [{name: part.facts[name] for name in ("file", "images", "bytes", "digest")} for part in parts],
    }


def _repair(work: _Work, card: dict[str, Any], num_workers: int) -> None:
    """Verifies the shards of a complete folder, and writes damaged ones again."""
    folder = work.folder
    written = {shard["file"]: shard["digest"] for facts in card["splits"].values() for shard in facts["shards"]}
    for facts in card["splits"].values():
        content = folder.read(facts["index"]["file"])
        if content is None or digest(content) != facts["index"]["digest"]:
            raise DataError(
                f"{folder}/{facts['index']['file']}: is missing or damaged; remove {DATASET} and repeat the command"
            )
    damaged = [shard for shard in _shards(work) if folder.digest(shard.file) != written[shard.file]]
    for shard, part in _written(work, damaged, num_workers):
        if part.facts["digest"] != written[shard.file]:
            raise DataError(
                f"{folder}/{shard.file}: was damaged, and its images are others now; remove {DATASET} and repeat the command"
            )
        console.say(f"{folder}/{shard.file} was damaged or missing, and is written again")


def _describe_for_tfds(folder: OutputFolder, card: dict[str, Any]) -> None:
    """Writes TFDS's files, by which `tfds.builder_from_directory` and other readers of TFDS's data sets read the folder."""
    import tensorflow_datasets as tfds  # imported here because it is slow

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=card["class_names"]),
            "file_name": tfds.features.Text(),
        }
    )
    pattern = "{SPLIT}-{SHARD_X_OF_Y}.{FILEFORMAT}"
    with tempfile.TemporaryDirectory() as temporary:
        splits = [
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=[shard["images"] for shard in facts["shards"]],
                num_bytes=sum(shard["bytes"] for shard in facts["shards"]),
                filename_template=tfds.core.ShardedFileTemplate(
                    temporary, pattern, dataset_name="prepared", split=name, filetype_suffix=EXTENSION[1:]
                ),
            )
            for name, facts in card["splits"].items()
        ]
        for facts in card["splits"].values():  # it looks for files of these names
            Path(temporary, facts["shards"][0]["file"]).touch()
        tfds.folder_dataset.write_metadata(
            data_dir=temporary, features=features, split_infos=splits, filename_template=pattern, check_data=False
        )
        for path in Path(temporary).glob("*.[jt]*"):
            folder.write(path.name, path.read_bytes())


class _Progress:
    """Prints images, speed and remaining time, every few seconds."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._started = self._printed = time.monotonic()

    def note(self, images: int) -> None:
        """Counts written images."""
        self._done += images
        now = time.monotonic()
        if now - self._printed >= _PRINT_EVERY or self._done == self._total:
            self._printed = now
            speed = self._done / max(now - self._started, 1e-9)
            left = console.duration((self._total - self._done) / speed)
            console.say(f"prepared {self._done:,}/{self._total:,} images  {speed:,.0f} images/s  ETA {left}")
