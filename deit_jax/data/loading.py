"""Batches for one host: Grain reads, decodes and crops in the background, in an order that depends only on the step.

The unit of reading is a chunk: a few dozen consecutive positions of one batch. Chunks spread Grain's overhead over many images,
and an image is decoded once for all its copies in the chunk. A crop's random numbers depend only on seed, step and row, so
batches do not depend on chunks, threads, workers or hosts.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from deit_jax.data.assembling import Batch, assemble, images_of
from deit_jax.data.bad_images import BadImages, OnBadImage
from deit_jax.data.decoding import Crop, EvaluationCrop, decode
from deit_jax.data.joint_order import JointOrder
from deit_jax.data.reading_speed import ReadingSpeed
from deit_jax.data.sampling import Chunk, Stretches, TrainOrder, chunks_of
from deit_jax.data.sources import DataError, ImageSource, UnusableError, is_multi_label
from deit_jax.data.unlabelled import UNLABELLED_ROW, is_unlabelled, same_kind

_CHUNK = 64  # maximum positions per chunk, plus remaining copies of an image
_MAX_BAD_IN_A_ROW = 100
# Second half of the Philox key: separates the crops' random stream from others with the same seed.
_CROP_STREAM = 0xC407


def crop_rng(seed: int, step: int, row: int) -> np.random.Generator:
    """Returns the random number generator of the crop in `row` of the global batch of `step`.

    Counter-based: only key and counter are set, so a new generator costs about ten microseconds. Draws use the low half.
    """
    return np.random.Generator(np.random.Philox(key=(seed, _CROP_STREAM), counter=(0, 0, row, step)))


def train_batches(
    source: ImageSource,
    order: TrainOrder | JointOrder,
    crop: Crop,
    *,
    start_step: int,
    stop_step: int,
    stretches: Stretches | None = None,
    dealt: bool = True,
    num_threads: int | None = None,
    num_workers: int | str = 0,
    prefetch_batches: int = 2,
    on_bad_image: OnBadImage = "stop",
    bad_images: BadImages | None = None,
    speed: ReadingSpeed | None = None,
    checksums: bool = False,
) -> Iterator[Batch]:
    """Iterates over the training batches of steps `start_step` to `stop_step - 1`; starting costs the same at any step.

    Args:
        source: the images; `order.num_examples` of them. A `JointSource` for a `JointOrder`.
        order: which image is where.
        crop: turns a decoded image into uint8 `[S, S, 3]`.
        start_step: first step, counted from 0 over all epochs.
        stop_step: one past the last step.
        stretches: the rows of the global batch that this host reads, B' in total; None: all.
        dealt: images are in the rows that `order` deals them to, and the stretches are whole blocks. False: images are in the
            order's positions; the stretches are positions then, with arbitrary bounds. A `JointOrder` deals any stretches.
        num_threads: decoding threads, per worker if there are workers; 0 reads in the caller's thread; None: by the cores.
        num_workers: decoding processes; 0: threads only; "auto": see `assembling.default_workers`, and threads only for images
            in memory.
        prefetch_batches: batches read ahead.
        on_bad_image: for an image that cannot be decoded or found, or has an invalid label: "stop" raises an error, "replace"
            reads the source's next usable image instead, with its own label.
        bad_images: counts the replaced images, batch by batch as they are returned; None: one that prints warnings.
        speed: measures how fast this process reads; None: not measured.
        checksums: also return `checksum` uint32 `[B']`, the CRC-32 of each row's image.

    Returns:
        An iterator over this host's rows of each global batch, stretch after stretch: `image` uint8 `[B', S, S, 3]` and `label`
        int32 `[B']`, -1 in unlabelled rows. Close it (or drop it) to stop the readers.

    Raises:
        ValueError: inconsistent arguments, e.g. rows to be dealt that are not whole blocks.
        DataError: while iterating, an image cannot be read or (with "stop") used.
    """
    _check_on_bad_image(on_bad_image)
    if len(source) != order.num_examples:
        raise ValueError(f"the order is for {order.num_examples} images and the source has {len(source)}")
    if not 0 <= start_step <= stop_step:
        raise ValueError(f"no steps from {start_step} to {stop_step}")
    stretches = ((0, order.batch_size),) if stretches is None else stretches
    if dealt and isinstance(order, JointOrder):
        order = order.for_stretches([edge for stretch in stretches for edge in stretch])
    if dealt and any(edge % order.block_size for stretch in stretches for edge in stretch):
        raise ValueError(f"rows {stretches} are not whole blocks of {order.block_size} rows: use dealt=False")
    chunks = chunks_of(stretches, order.batch_size, _CHUNK)
    read = _TrainReader(source, order, crop, start_step, chunks, dealt, on_bad_image, checksums)
    rows = sum(stop - start for start, stop in stretches)

    return assemble(
        read,
        steps=stop_step - start_step,
        chunks=len(chunks),
        empty=lambda: read.empty(rows),
        num_threads=num_threads,
        num_workers=num_workers,
        prefetch_batches=prefetch_batches,
        bad_images=bad_images or BadImages(),
        speed=speed,
    )


def eval_batches(
    source: ImageSource,
    crop: EvaluationCrop,
    batch_size: int,
    *,
    stretches: Stretches | None = None,
    num_threads: int | None = None,
    num_workers: int | str = 0,
    prefetch_batches: int = 2,
    on_bad_image: OnBadImage = "stop",
    bad_images: BadImages | None = None,
) -> Iterator[Batch]:
    """Iterates over the whole source once, in its order: every image is in exactly one batch of one host.

    Args:
        source: the images.
        crop: turns a decoded image into uint8 `[S, S, 3]`, without random numbers.
        batch_size: rows of the global batch over all processes.
        stretches: the rows of the global batch that this host reads, B' in total; None: all. All hosts get as many batches.
        num_threads, num_workers, prefetch_batches: see `train_batches`.
        on_bad_image: for an unusable image: "stop" raises an error, "replace" masks its row like padding.
        bad_images: counts the masked images, batch by batch as they are returned; None: one that prints warnings.

    Returns:
        An iterator over this host's rows: `image` uint8 `[B', S, S, 3]`, `label` int32 `[B']` and `mask` bool `[B']`, False for
        padding of the last batch (zeros) and for unusable images. For a multi-label source `label` is bool `[B', K]`, K the
        number of classes: True for each correct one, all False in the padding. Close it (or drop it) to stop the readers.

    Raises:
        ValueError: a batch does not have such rows.
        DataError: while iterating, an image cannot be read or decoded.
    """
    _check_on_bad_image(on_bad_image)
    stretches = ((0, batch_size),) if stretches is None else stretches
    chunks = chunks_of(stretches, batch_size, _CHUNK)
    read = _EvalReader(source, crop, batch_size, chunks, on_bad_image)
    rows = sum(stop - start for start, stop in stretches)
    return assemble(
        read,
        steps=math.ceil(len(source) / batch_size),
        chunks=len(chunks),
        empty=lambda: empty_eval_batch(source, crop, rows),
        num_threads=num_threads,
        num_workers=num_workers,
        prefetch_batches=prefetch_batches,
        bad_images=bad_images or BadImages(action="left out"),
    )


def empty_eval_batch(source: ImageSource, crop: EvaluationCrop, rows: int) -> Batch:
    """Returns a batch of `eval_batches` that is all padding."""
    return {
        "image": images_of(rows, crop.size, black=True),
        "label": _no_labels(source, rows),
        "mask": np.zeros(rows, bool),
    }


def _check_on_bad_image(on_bad_image: str) -> None:
    if on_bad_image not in ("stop", "replace"):
        raise ValueError(f"data.on_bad_image={on_bad_image!r} is not one of stop, replace")


def _no_labels(source: ImageSource, rows: int) -> np.ndarray:
    """Returns labels to be filled in: int32 `[rows]`, or bool `[rows, K]` for a multi-label source."""
    return np.zeros((rows, len(source.class_names)), bool) if is_multi_label(source) else np.zeros(rows, np.int32)


def _read(source: ImageSource, index: int) -> tuple[np.ndarray, int | tuple[int, ...]]:
    example = source[index]
    for label in example.label if isinstance(example.label, tuple) else (example.label,):
        if not 0 <= label < len(source.class_names) and not (label == UNLABELLED_ROW and is_unlabelled(source, index)):
            raise UnusableError(
                f"{source.describe(index)}: label {label} is outside the {len(source.class_names)} classes; correct it"
            )
    try:
        return decode(example.image), example.label
    except DataError as error:
        raise UnusableError(f"{source.describe(index)}: {error}") from error


@dataclasses.dataclass(frozen=True)
class _TrainReader:
    """A `ReadChunk` of training batches. A class, not a closure, because workers unpickle it."""

    source: ImageSource
    order: TrainOrder | JointOrder
    crop: Crop
    start_step: int
    chunks: tuple[Chunk, ...]  # parts of one batch
    dealt: bool
    on_bad_image: OnBadImage
    checksums: bool

    def empty(self, rows: int) -> Batch:
        """Returns arrays of that many rows, to be filled in."""
        batch: Batch = {"image": images_of(rows, self.crop.size), "label": np.empty(rows, np.int32)}
        return batch | ({"checksum": np.empty(rows, np.uint32)} if self.checksums else {})

    def __call__(self, index: int, batch: Batch | None = None) -> dict[str, Any]:
        step, number = divmod(index, len(self.chunks))
        step += self.start_step
        chunk = self.chunks[number]
        start, stop = (self._edge(step, edge, chunk) for edge in (chunk.start, chunk.stop))
        where = self.order.positions(step, start, stop)
        rows = (where.row if self.dealt else np.arange(start, stop)) + chunk.offset
        out, places = (self.empty(len(rows)), range(len(rows))) if batch is None else (batch, rows.tolist())
        bad: list[str] = []
        previous, pixels = -1, np.empty(0, np.uint8)
        label: int | tuple[int, ...] = 0
        for i, (image, row, place) in enumerate(
            zip(where.image_index.tolist(), where.row.tolist(), places, strict=True)
        ):
            if image != previous:
                previous = image
                # Another host has the first copies of this image, and counts it if it is replaced.
                counted = (i > 0 or start > 0) and where.copy[i] > 0
                pixels, label = self._read(image, [] if counted else bad)
            self.crop(pixels, crop_rng(self.order.seed, step, row), out["image"][place])
            out["label"][place] = label
            if self.checksums:
                out["checksum"][place] = zlib.crc32(out["image"][place].data)
        return {"bad": "\0".join(bad)} | ({"row": rows, **out} if batch is None else {})

    def _edge(self, step: int, edge: int, chunk: Chunk) -> int:
        """Moves a boundary between chunks to the end of an image's copies; the stretch's own bounds stay."""
        if edge in (chunk.first, chunk.last):
            return edge
        return min(self.order.end_of_copies(step, edge), chunk.last)

    def _read(self, index: int, bad: list[str]) -> tuple[np.ndarray, int | tuple[int, ...]]:
        others = same_kind(self.source, index)
        for attempt in range(_MAX_BAD_IN_A_ROW):
            try:
                return _read(self.source, others[(index - others[0] + attempt) % len(others)])
            except UnusableError as error:
                if self.on_bad_image == "stop":
                    raise
                bad.append(str(error))
        raise DataError(f"{_MAX_BAD_IN_A_ROW} images in a row cannot be used; the last: {bad[-1]}")


@dataclasses.dataclass(frozen=True)
class _EvalReader:
    """A `ReadChunk` of evaluation batches; there are fewer images or none past the end of the source."""

    source: ImageSource
    crop: EvaluationCrop
    batch_size: int
    chunks: tuple[Chunk, ...]  # parts of one batch
    on_bad_image: OnBadImage

    def __call__(self, index: int, batch: Batch | None = None) -> dict[str, Any]:
        number, part = divmod(index, len(self.chunks))
        start, chunk = number * self.batch_size, self.chunks[part]
        local = [row for row in range(chunk.start, chunk.stop) if start + row < len(self.source)]
        rows = np.asarray(local, np.int32) + chunk.offset
        out = empty_eval_batch(self.source, self.crop, len(rows)) if batch is None else batch
        places = range(len(rows)) if batch is None else rows.tolist()
        bad: list[str] = []
        for row, place in zip(local, places, strict=True):
            try:
                pixels, label = _read(self.source, start + row)
            except UnusableError as error:
                if self.on_bad_image == "stop":
                    raise
                bad.append(str(error))
                continue
            self.crop(pixels, out=out["image"][place])
            out["mask"][place] = True
            if isinstance(label, tuple):
                out["label"][place, list(label)] = True
            else:
                out["label"][place] = label
        return {"bad": "\0".join(bad)} | ({"row": rows, **out} if batch is None else {})
