"""Writes images of any source as array_record shards: `prepare`. prepared.py reads them.

Shards have a fixed number of images of the source, so each is written independently of the others, by threads or processes. A
finished shard has a file in PARTS with its images and its digest; the parts become the index of the split at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from deit_jax import console
from deit_jax.data.classes import difference
from deit_jax.data.output_folder import OutputFolder
from deit_jax.data.prepared import DATASET, EXTENSION, FORMAT, ImageIndex, read_card
from deit_jax.data.shard_writing import Part, Settings, write_shard
from deit_jax.data.sources import DataError, ImageSource, digest, fingerprint_of
from deit_jax.plugins import ImportedPlugins
from deit_jax.version import __version__

_PLAN, _PARTS = "preparation.json", "parts"
_PRINT_EVERY = 10.0  # seconds between two lines of progress


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
class _Work:
    """Everything that a process needs to write shards."""

    plugins: ImportedPlugins  # first, so that they are imported before the sources, which may need them
    sources: dict[str, ImageSource]
    folder: OutputFolder
    settings: Settings
    leave_out: bool
    num_threads: int

    def write(self, shard: _Shard) -> Part:
        """Writes a shard and returns its part, which is not written."""
        source, indices = self.sources[shard.split], range(shard.start, shard.end)
        with self.folder.writing(shard.file) as path:
            return write_shard(
                source, indices, path, self.settings, leave_out=self.leave_out, num_threads=self.num_threads
            )


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
            _tidy(folder)
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
        _tidy(folder)
    return card


def _tidy(folder: OutputFolder) -> None:
    """Removes what only an unfinished folder needs; files that cannot be removed do no harm."""
    for name in {_PARTS, _PLAN} & set(folder.names()):
        with contextlib.suppress(DataError):
            folder.remove(name)


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


def _write_all(work: _Work, num_workers: int) -> dict[str, dict[_Shard, Part]]:
    """Writes the missing shards; returns the parts of all by split, in order."""
    folder, kept, missing = work.folder, dict[_Shard, Part](), list[_Shard]()
    shards = _shards(work)
    for shard in shards:
        part = Part.from_bytes(folder.read(shard.part))
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
    return {name: {shard: kept[shard] for shard in shards if shard.split == name} for name in work.sources}


def _written(work: _Work, shards: list[_Shard], num_workers: int) -> Iterator[tuple[_Shard, Part]]:
    """Writes shards, and yields them with their parts as they are finished."""
    if not num_workers or len(shards) < 2:
        for shard in shards:
            yield shard, work.write(shard)
        return
    pool = ProcessPoolExecutor(
        min(num_workers, len(shards)), multiprocessing.get_context("spawn"), initializer=_start, initargs=(work,)
    )
    waiting: dict[Future[Part], _Shard] = {}
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


def _write_in_worker(shard: _Shard) -> Part:
    assert _work is not None
    return _work.write(shard)


def _join(work: _Work, split: str, parts: dict[_Shard, Part]) -> dict[str, Any]:
    """Writes the index of a split and returns its facts for DATASET."""
    index, file = ImageIndex.join([part.index for part in parts.values()]), f"{split}.index.npz"
    content = index.to_bytes()
    work.folder.write(file, content)
    resized, left_out = (sum(part.facts[name] for part in parts.values()) for name in ("resized", "left_out"))
    base = fingerprint_of(work.sources[split])
    own = digest(index.names, index.ends, index.labels)
    changed = f"{work.settings.shortest_side} {work.settings.quality}".encode() if resized else b""
    return {
        "images": len(index.labels),
        "resized": resized,
        "left_out": left_out,
        "fingerprint": digest(base.encode(), own.encode(), changed) if resized or left_out else base or own,
        "index": {"file": file, "digest": digest(content)},
        "shards": [
            {"file": shard.file, **{name: part.facts[name] for name in ("images", "bytes", "digest")}}
            for shard, part in parts.items()
        ],
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
