"""Batches for one host: Grain reads, decodes and crops in the background, in an order that depends on nothing but the step.

The unit of reading is a chunk: a few dozen consecutive positions of one batch. It keeps Grain's cost per element away from
single images, and an image is decoded once for all its copies in the chunk. A crop's random numbers are a function of seed,
step and row alone, so batches do not depend on chunks, threads, workers or hosts.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from deit_jax.data import shared_memory
from deit_jax.data.bad_images import BadImages, OnBadImage
from deit_jax.data.decoding import Crop, EvaluationCrop, decode
from deit_jax.data.sampling import Chunk, Stretches, TrainOrder, chunks_of
from deit_jax.data.sources import DataError, ImageSource, UnusableError, is_multi_label
from deit_jax.plugins import ImportedPlugins

_CHUNK = 64  # positions of a chunk, at most (and up to an image's further copies)
_MAX_THREADS = 16  # by default; the interpreter's lock feeds hardly more
_MAX_BAD_IN_A_ROW = 100
# Second half of the Philox key: keeps the crops' stream apart from others that start from the same seed.
_CROP_STREAM = 0xC407

_SMALL_ARRAYS = 32 << 10  # bytes of a chunk besides its images: rows and labels, a page each

Batch = dict[str, np.ndarray]


def crop_rng(seed: int, step: int, row: int) -> np.random.Generator:
    """The random numbers of the crop in `row` of the global batch of `step`.

    Counter-based: key and counter are set, nothing is mixed, so a fresh generator costs about ten microseconds. The low half
    of the counter is left to the draws.
    """
    return np.random.Generator(np.random.Philox(key=(seed, _CROP_STREAM), counter=(0, 0, row, step)))


def train_batches(
    source: ImageSource,
    order: TrainOrder,
    crop: Crop,
    *,
    start_step: int,
    stop_step: int,
    stretches: Stretches | None = None,
    dealt: bool = True,
    num_threads: int | None = None,
    num_workers: int = 0,
    prefetch_batches: int = 2,
    on_bad_image: OnBadImage = "stop",
    bad_images: BadImages | None = None,
) -> Iterator[Batch]:
    """Training batches of steps `start_step` to `stop_step - 1`; starting costs the same at any step.

    Args:
        source: the images; as many as `order.num_examples`.
        order: which image goes where.
        crop: makes uint8 `[S, S, 3]` of a decoded image.
        start_step: first step, from 0 over all epochs.
        stop_step: one past the last step.
        stretches: the rows of the global batch that this host reads, B' in all; None: all.
        dealt: the images lie in the rows that `order` deals them to, and the stretches are whole blocks. False: they lie in the
            order's positions; the stretches are of positions then, and may begin and end anywhere.
        num_threads: decoding threads, of each worker if there are any; 0 reads in the caller's thread; None goes by the cores.
        num_workers: decoding processes; 0 = threads only.
        prefetch_batches: batches read ahead.
        on_bad_image: an image that cannot be used (decoded, or found, or whose label is no class) is an error ("stop"), or the
            next one of the source that can be is read in its place, with its own label ("replace").
        bad_images: counts the images replaced, batch by batch as they are handed out; None: one that warns.

    Returns:
        An iterator over this host's rows of each global batch, stretch after stretch: `image` uint8 `[B', S, S, 3]` and `label`
        int32 `[B']`. Close it (or drop it) to stop the readers.

    Raises:
        ValueError: the arguments do not fit together, e.g. rows to be dealt that are not whole blocks.
        DataError: while iterating, an image cannot be read or (with "stop") used.
    """
    _check_on_bad_image(on_bad_image)
    if len(source) != order.num_examples:
        raise ValueError(f"the order is for {order.num_examples} images and the source has {len(source)}")
    if not 0 <= start_step <= stop_step:
        raise ValueError(f"no steps from {start_step} to {stop_step}")
    stretches = ((0, order.batch_size),) if stretches is None else stretches
    if dealt and any(edge % order.block_size for stretch in stretches for edge in stretch):
        raise ValueError(
            f"rows {stretches} are not whole blocks of {order.block_size} rows: read them with dealt=False"
        )
    chunks = chunks_of(stretches, order.batch_size, _CHUNK)
    read = _TrainReader(source, order, crop, start_step, chunks, dealt, on_bad_image)
    rows = sum(stop - start for start, stop in stretches)
    return _batches(
        read,
        steps=stop_step - start_step,
        chunks=len(chunks),
        empty=lambda: {"image": np.empty((rows, crop.size, crop.size, 3), np.uint8), "label": np.empty(rows, np.int32)},
        num_threads=num_threads,
        num_workers=num_workers,
        prefetch_batches=prefetch_batches,
        bad_images=bad_images or BadImages(),
    )


def eval_batches(
    source: ImageSource,
    crop: EvaluationCrop,
    batch_size: int,
    *,
    stretches: Stretches | None = None,
    num_threads: int | None = None,
    num_workers: int = 0,
    prefetch_batches: int = 2,
    on_bad_image: OnBadImage = "stop",
    bad_images: BadImages | None = None,
) -> Iterator[Batch]:
    """The whole source once, in its own order: every image in exactly one batch of one host.

    Args:
        source: the images.
        crop: makes uint8 `[S, S, 3]` of a decoded image; called without random numbers.
        batch_size: rows of the global batch over all processes.
        stretches: the rows of the global batch that this host reads, B' in all; None: all. All hosts get as many batches.
        num_threads: decoding threads, of each worker if there are any; 0 reads in the caller's thread; None goes by the cores.
        num_workers: decoding processes; 0 = threads only.
        prefetch_batches: batches read ahead.
        on_bad_image: an image that cannot be used is an error ("stop"), or its row is masked as the padding is ("replace").
        bad_images: counts the masked images, batch by batch as they are handed out; None: one that warns.

    Returns:
        An iterator over this host's rows: `image` uint8 `[B', S, S, 3]`, `label` int32 `[B']` and `mask` bool `[B']`,
        which is False in the rows that pad the last batch (zeros) and in those of images that cannot be used. Of a source that is
        multi-label `label` is bool `[B', K]`, K the number of its classes: True for each that is right, nowhere in the padding.
        Close it (or drop it) to stop the readers.

    Raises:
        ValueError: there are no such rows in a batch.
        DataError: while iterating, an image cannot be read or decoded.
    """
    _check_on_bad_image(on_bad_image)
    stretches = ((0, batch_size),) if stretches is None else stretches
    chunks = chunks_of(stretches, batch_size, _CHUNK)
    read = _EvalReader(source, crop, batch_size, chunks, on_bad_image)
    rows = sum(stop - start for start, stop in stretches)
    return _batches(
        read,
        steps=math.ceil(len(source) / batch_size),
        chunks=len(chunks),
        empty=lambda: empty_eval_batch(source, crop, rows),
        num_threads=num_threads,
        num_workers=num_workers,
        prefetch_batches=prefetch_batches,
        bad_images=bad_images or BadImages(fate="left out"),
    )


def empty_eval_batch(source: ImageSource, crop: EvaluationCrop, rows: int) -> Batch:
    """A batch of `eval_batches` that is all padding."""
    return {
        "image": np.zeros((rows, crop.size, crop.size, 3), np.uint8),
        "label": _no_labels(source, rows),
        "mask": np.zeros(rows, bool),
    }


def _check_on_bad_image(on_bad_image: str) -> None:
    if on_bad_image not in ("stop", "replace"):
        raise ValueError(f"data.on_bad_image={on_bad_image!r} is none of stop, replace")


def _no_labels(source: ImageSource, rows: int) -> np.ndarray:
    """Labels of so many rows, to be filled in: int32 `[rows]`, or bool `[rows, K]` of a multi-label source."""
    return np.zeros((rows, len(source.class_names)), bool) if is_multi_label(source) else np.zeros(rows, np.int32)


def _read(source: ImageSource, index: int) -> tuple[np.ndarray, int | tuple[int, ...]]:
    example = source[index]
    for label in example.label if isinstance(example.label, tuple) else (example.label,):
        if not 0 <= label < len(source.class_names):
            raise UnusableError(
                f"{source.describe(index)}: label {label} is outside the {len(source.class_names)} classes; correct it"
            )
    try:
        return decode(example.image), example.label
    except DataError as error:
        raise UnusableError(f"{source.describe(index)}: {error}") from error


@dataclasses.dataclass(frozen=True)
class _TrainReader:
    """Chunk number -> its images, and the local rows they belong to. A class, not a closure: workers unpickle it.

    `bad` is a line for each image that was replaced.
    """

    source: ImageSource
    order: TrainOrder
    crop: Crop
    start_step: int
    chunks: tuple[Chunk, ...]  # of a batch
    dealt: bool
    on_bad_image: OnBadImage

    def __call__(self, index: int) -> dict[str, Any]:
        step, number = divmod(index, len(self.chunks))
        step += self.start_step
        chunk = self.chunks[number]
        start, stop = (self._edge(step, edge, chunk) for edge in (chunk.start, chunk.stop))
        where = self.order.positions(step, start, stop)
        images = np.empty((len(where.row), self.crop.size, self.crop.size, 3), np.uint8)
        labels = np.empty(len(where.row), np.int32)
        bad: list[str] = []
        previous, pixels = -1, np.empty(0, np.uint8)
        label: int | tuple[int, ...] = 0
        for i, (image, row) in enumerate(zip(where.image_index.tolist(), where.row.tolist(), strict=True)):
            if image != previous:
                previous = image
                begun = i == 0 and start > 0 and where.copy[0] > 0  # by another host, which counts it if it is replaced
                pixels, label = self._read(image, [] if begun else bad)
            images[i] = self.crop(pixels, crop_rng(self.order.seed, step, row))
            labels[i] = label
        rows = (where.row if self.dealt else np.arange(start, stop)) + chunk.offset
        return {"row": rows, "image": images, "label": labels, "bad": "\0".join(bad)}

    def _edge(self, step: int, edge: int, chunk: Chunk) -> int:
        """A border between chunks, moved to where the copies of an image end; those of the stretch stay."""
        if edge in (chunk.first, chunk.last):
            return edge
        entry = step % self.order.steps_per_epoch * self.order.batch_size + edge
        return min(edge + -entry % self.order.repeats, chunk.last)

    def _read(self, index: int, bad: list[str]) -> tuple[np.ndarray, int | tuple[int, ...]]:
        for attempt in range(_MAX_BAD_IN_A_ROW):
            try:
                return _read(self.source, (index + attempt) % len(self.source))
            except UnusableError as error:
                if self.on_bad_image == "stop":
                    raise
                bad.append(str(error))
        raise DataError(f"{_MAX_BAD_IN_A_ROW} images in a row cannot be used; the last: {bad[-1]}")


@dataclasses.dataclass(frozen=True)
class _EvalReader:
    """Chunk number -> its images (fewer or none past the end of the source) and the local rows they belong to."""

    source: ImageSource
    crop: EvaluationCrop
    batch_size: int
    chunks: tuple[Chunk, ...]  # of a batch
    on_bad_image: OnBadImage

    def __call__(self, index: int) -> dict[str, Any]:
        batch, number = divmod(index, len(self.chunks))
        start, chunk = batch * self.batch_size, self.chunks[number]
        rows = [row for row in range(chunk.start, chunk.stop) if start + row < len(self.source)]
        images = np.zeros((len(rows), self.crop.size, self.crop.size, 3), np.uint8)
        labels = _no_labels(self.source, len(rows))
        mask = np.ones(len(rows), bool)
        bad: list[str] = []
        for i, row in enumerate(rows):
            try:
                pixels, label = _read(self.source, start + row)
            except UnusableError as error:
                if self.on_bad_image == "stop":
                    raise
                mask[i] = False
                bad.append(str(error))
                continue
            images[i] = self.crop(pixels)
            if isinstance(label, tuple):
                labels[i, list(label)] = True
            else:
                labels[i] = label
        return {
            "row": np.asarray(rows, np.int32) + chunk.offset,
            "image": images,
            "label": labels,
            "mask": mask,
            "bad": "\0".join(bad),
        }


@dataclasses.dataclass(frozen=True)
class _Reader:
    """What a loader worker unpickles: first the plugins, which it so imports before what they are needed for."""

    plugins: ImportedPlugins
    read: Callable[[int], dict[str, Any]]

    def __call__(self, index: int) -> dict[str, Any]:
        return self.read(index)


def _batches(
    read: Callable[[int], dict[str, Any]],
    *,
    steps: int,
    chunks: int,
    empty: Callable[[], Batch],
    num_threads: int | None,
    num_workers: int,
    prefetch_batches: int,
    bad_images: BadImages | None = None,
) -> Iterator[Batch]:
    if min(num_threads or 0, num_workers, prefetch_batches) < 0:
        raise ValueError(
            f"data.num_threads={num_threads}, data.num_workers={num_workers}, data.prefetch_batches={prefetch_batches}: "
            "none may be negative"
        )
    if num_threads is None:
        num_threads = default_threads(num_workers)
    # At least a chunk for every thread: a small batch is a single chunk, and the others would have nothing to do.
    ahead = max(prefetch_batches * chunks, num_threads, 1)
    per_process = math.ceil(ahead / max(num_workers, 1))
    dataset: Any = (
        grain.MapDataset.range(steps * chunks)
        .map(_Reader(ImportedPlugins(), read))
        .to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(per_process, num_threads)))
    )
    if num_workers:
        # Grain keeps as many chunks again where it opens them, and one on each side.
        kept = min(2 * per_process + 2, math.ceil(steps * chunks / num_workers))
        one = sum(array.nbytes for array in empty().values()) // chunks + _SMALL_ARRAYS
        shared_memory.require(num_workers * kept * one, num_workers)
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=per_process)
        )
    return _stream(dataset, steps, chunks, empty, num_workers, bad_images)


def default_threads(num_workers: int) -> int:
    """Decoding threads where none are configured: a thread for each core that this process may use, spread over the workers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(math.ceil(cores / max(num_workers, 1)), _MAX_THREADS)


def _stream(
    dataset: Any,
    steps: int,
    chunks: int,
    empty: Callable[[], Batch],
    num_workers: int,
    bad_images: BadImages | None,
) -> Iterator[Batch]:
    if not steps:
        return
    if num_workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which nobody parses in a notebook or a test
    reader = iter(dataset)
    try:
        for _ in range(steps):
            batch, bad = empty(), []
            for _ in range(chunks):
                bad += _put(_next(reader, num_workers), batch)
            if bad_images is not None:
                bad_images.add(bad)
            yield batch
    finally:
        # With workers, an abandoned iterator leaves processes behind, and its reference cycles the last chunks' shared
        # memory, which Python's resource tracker would complain about at exit.
        reader.close()
        if num_workers:
            del reader
            gc.collect()


def _next(reader: Iterator[dict[str, Any]], num_workers: int) -> dict[str, Any]:
    try:
        return next(reader)
    except OSError as error:  # of an image it is a DataError
        if not num_workers:
            raise
        raise shared_memory.refused(error) from error
    except RuntimeError as error:
        if (ended := shared_memory.ended(error)) is None:
            raise
        raise ended from error


def _put(chunk: dict[str, Any], batch: Batch) -> list[str]:
    """Puts a chunk's images into their rows; returns a line for each replaced one."""
    rows, bad = chunk.pop("row"), chunk.pop("bad", "")
    for key, values in chunk.items():
        batch[key][rows] = values
    return bad.split("\0") if bad else []  # a file's name may hold any other character
