"""Puts the batches of one host together from chunks, which Grain reads in the background in threads or processes.

Threads write the images to their rows of the batch. Processes pass chunks through shared memory, from where they are copied.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import os
import pickle
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

from deit_jax import console
from deit_jax.data import shared_memory
from deit_jax.data.bad_images import BadImages
from deit_jax.data.reading_speed import ReadingSpeed
from deit_jax.data.sources import DataError, ImageSource
from deit_jax.plugins import ImportedPlugins

Batch = dict[str, np.ndarray]
AUTO = "auto"  # as a number of workers
_THREADS = 16  # per process; the interpreter lock hardly allows more
_ALIGNMENT = 64  # bytes; JAX's alignment, at which a device that is the CPU takes an array without a copy
_SMALL_ARRAYS = 32 << 10  # bytes per chunk in addition to its images: rows and labels, one page each


# A batch; a line for each replaced image; the seconds that threads took to read it, summed over the threads.
_Assembled = tuple[Batch, list[str], float]


class ReadChunk(Protocol):
    """Reads a chunk, by its number over all batches. It must pickle."""

    @property
    def source(self) -> ImageSource:
        """The images."""

    def __call__(self, index: int, batch: Batch | None = None) -> dict[str, Any]:
        """Writes the chunk to its rows of `batch`; returns `bad`, a line for each replaced image, separated by NUL.

        Without a batch it also returns new arrays of the chunk alone, and `row`, their rows.
        """


def images_of(rows: int, size: int, *, black: bool = False) -> np.ndarray:
    """Returns images to be filled in, uint8 `[rows, size, size, 3]`, at an address that needs no copy on CPU.

    black: all values are 0. Otherwise memory is touched only when it is filled, by the thread that fills it.
    """
    count = rows * size * size * 3
    memory = (np.zeros if black else np.empty)(count + _ALIGNMENT, np.uint8)
    start = -memory.__array_interface__["data"][0] % _ALIGNMENT
    return memory[start : start + count].reshape(rows, size, size, 3)


def assemble(
    read: ReadChunk,
    *,
    steps: int,
    chunks: int,
    empty: Callable[[], Batch],
    num_threads: int | None,
    num_workers: int | str,
    prefetch_batches: int,
    bad_images: BadImages | None = None,
    speed: ReadingSpeed | None = None,
) -> Iterator[Batch]:
    """Iterates over `steps` batches of `chunks` chunks each; see `loading.train_batches`.

    empty: makes a batch to be filled in.
    """
    if min(num_threads or 0, 0 if num_workers == AUTO else int(num_workers), prefetch_batches) < 0:
        raise ValueError(
            f"data.num_threads={num_threads}, data.num_workers={num_workers}, data.prefetch_batches={prefetch_batches}: "
            "none may be negative"
        )

    def open_in(workers: int) -> Iterator[Batch]:
        threads = default_threads(workers) if num_threads is None else num_threads
        if workers:
            opened = _from_workers(read, steps, chunks, empty, threads, workers, prefetch_batches)
        else:
            opened = _from_threads(read, steps, chunks, empty, threads, prefetch_batches)
        return _noted(opened, max(threads, 1) * max(workers, 1), bad_images, speed)

    if num_workers != AUTO:
        return open_in(int(num_workers))
    workers = 0 if num_threads == 0 else default_workers()
    if not workers or _in_memory(read.source):
        return open_in(0)
    try:
        pickle.dumps(read)
        return open_in(workers)
    except Exception as error:  # a user's source may raise anything
        reason = str(error) if isinstance(error, DataError) else f"the images' source does not pickle ({error})"
        console.warn(f"data.num_workers=auto reads in {default_threads(0)} threads: {reason}")
        return open_in(0)


def _noted(
    assembled: Generator[_Assembled, None, None], lanes: int, bad_images: BadImages | None, speed: ReadingSpeed | None
) -> Iterator[Batch]:
    """Yields the batches, and notes what else is known about them."""
    if speed is not None:
        speed.begin(lanes)
    with contextlib.closing(assembled):
        for batch, bad, seconds in assembled:
            if bad_images is not None:
                bad_images.add(bad)
            if speed is not None:
                speed.add(len(batch["image"]), seconds)
            yield batch


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """Returns the number of decoding processes for "auto": 0 up to 16 cores, then one per 16 cores available to this process."""
    cores = _cores()
    return math.ceil(cores / _THREADS) if cores > _THREADS else 0


def default_threads(num_workers: int) -> int:
    """Returns the default number of decoding threads: one per core available to this process, divided among the workers."""
    return min(math.ceil(_cores() / max(num_workers, 1)), _THREADS)


def _in_memory(source: ImageSource) -> bool:
    """Whether the images are arrays, which are cropped faster than processes pass them on."""
    try:
        return isinstance(source[0].image, np.ndarray)
    except DataError:  # a damaged file
        return False


def _ahead(chunks: int, num_threads: int, prefetch_batches: int) -> int:
    """The number of chunks to read ahead: at least one per thread, since a small batch is a single chunk."""
    return max(prefetch_batches * chunks, num_threads, 1)


# --- Threads ---------------------------------------------------------------------------------------------------------------


class _InPlace:
    """Reads chunks into the batches that they belong to."""

    def __init__(self, read: ReadChunk, chunks: int, empty: Callable[[], Batch]) -> None:
        self._read, self._chunks, self._empty = read, chunks, empty
        self._lock = threading.Lock()
        self._begun: dict[int, Batch] = {}  # by number

    def __call__(self, index: int) -> dict[str, Any]:
        number = index // self._chunks
        with self._lock:
            if number not in self._begun:
                self._begun[number] = self._empty()
            batch = self._begun[number]
        return _timed(self._read, index, batch)

    def take(self, number: int) -> Batch:
        """Returns a batch all of whose chunks were read."""
        with self._lock:
            return self._begun.pop(number)


def _from_threads(
    read: ReadChunk,
    steps: int,
    chunks: int,
    empty: Callable[[], Batch],
    num_threads: int,
    prefetch_batches: int,
) -> Generator[_Assembled, None, None]:
    in_place = _InPlace(read, chunks, empty)
    options = grain.ReadOptions(num_threads, _ahead(chunks, num_threads, prefetch_batches))
    if not steps:
        return
    reader: Any = iter(grain.MapDataset.range(steps * chunks).map(in_place).to_iter_dataset(options))
    try:
        for number in range(steps):
            read_chunks = [next(reader) for _ in range(chunks)]
            bad = [line for chunk in read_chunks for line in _lines(chunk)]
            yield in_place.take(number), bad, sum(chunk["seconds"] for chunk in read_chunks)
    finally:
        reader.close()


# --- Processes -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _InWorker:
    """What a loader worker unpickles: the plugins come first, so that they are imported before `read`, which may need them."""

    plugins: ImportedPlugins
    read: ReadChunk

    def __call__(self, index: int) -> dict[str, Any]:
        return _timed(self.read, index)


def _from_workers(
    read: ReadChunk,
    steps: int,
    chunks: int,
    empty: Callable[[], Batch],
    num_threads: int,
    num_workers: int,
    prefetch_batches: int,
) -> Generator[_Assembled, None, None]:
    per_process = math.ceil(_ahead(chunks, num_threads, prefetch_batches) / num_workers)
    # Grain buffers the same number again where it opens the chunks, and one more on each side.
    kept = min(2 * per_process + 2, math.ceil(steps * chunks / num_workers))
    one = sum(array.nbytes for array in empty().values()) // chunks + _SMALL_ARRAYS
    shared_memory.require(num_workers * kept * one, num_workers)
    options = grain.ReadOptions(num_threads, max(per_process, num_threads))
    workers = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=per_process)
    dataset: Any = (
        grain.MapDataset.range(steps * chunks).map(_InWorker(ImportedPlugins(), read)).to_iter_dataset(options)
    )
    dataset = dataset.mp_prefetch(workers)

    def batches() -> Generator[_Assembled, None, None]:
        if not steps:
            return
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which are not parsed in notebooks and tests
        reader = iter(dataset)
        try:
            for _ in range(steps):
                batch, bad, seconds = empty(), [], 0.0
                for _ in range(chunks):
                    chunk = _next(reader)
                    bad += _lines(chunk)
                    seconds += float(chunk["seconds"])
                    for name, values in batch.items():
                        values[chunk["row"]] = chunk[name]
                yield batch, bad, seconds
        finally:
            # An abandoned iterator leaves processes running, and its reference cycles keep the last chunks' shared memory,
            # which Python's resource tracker reports at exit.
            reader.close()
            del reader
            gc.collect()

    return batches()


def _next(reader: Iterator[dict[str, Any]]) -> dict[str, Any]:
    try:
        return next(reader)
    except OSError as error:  # errors of an image are DataErrors
        raise shared_memory.refused(error) from error
    except RuntimeError as error:
        if (ended := shared_memory.ended(error)) is None:
            raise
        raise ended from error


def _timed(read: ReadChunk, *arguments: Any) -> dict[str, Any]:
    """Returns what `read` returns, with the seconds that it took."""
    began = time.perf_counter()
    return read(*arguments) | {"seconds": time.perf_counter() - began}


def _lines(chunk: dict[str, Any]) -> list[str]:
    bad: str = chunk["bad"]
    return bad.split("\0") if bad else []  # a file name may contain any other character
