"""How far a host is ahead of its devices: batches sent in advance by a thread, and steps that are not finished.

Both are bounded, because they keep their batches in memory.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from deit_jax.parallel.sharding import put_batch

Item = TypeVar("Item")

UNFINISHED_STEPS = 3  # the one that the devices compute, and two that follow it without a gap


class Unfinished:
    """The dispatched steps that are not finished, at most UNFINISHED_STEPS."""

    def __init__(self) -> None:
        self._results: deque[Any] = deque()

    def note(self, result: Any) -> None:
        """Takes a result of a step that was dispatched, which is not donated; waits for an earlier step if there are too many."""
        self._results.append(result)
        if len(self._results) > UNFINISHED_STEPS:
            jax.block_until_ready(self._results.popleft())


def sent_in_advance(
    mesh: Mesh, batches: Iterator[dict[str, np.ndarray]], count: int
) -> Generator[dict[str, jax.Array], None, None]:
    """Yields `batches` on the mesh, read and sent by a thread, see `in_advance`."""
    return in_advance((put_batch(mesh, batch) for batch in batches), count)


def in_advance(items: Iterator[Item], count: int) -> Generator[Item, None, None]:
    """Yields `items`, which a thread takes from their iterator: at most `count` (at least 1) of them wait to be used.

    An error of the iterator is raised at its place, after the items before it. Close the generator to stop the thread, which
    closes the iterator. Nothing may be collective in the iterator, since the other processes may be at another item.
    """
    made: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    room, stopped = threading.Semaphore(count), threading.Event()

    def make() -> None:
        end: BaseException | None = StopIteration()
        try:
            while True:
                room.acquire()
                if stopped.is_set() or (item := next(items, made)) is made:
                    break
                made.put((item, None))
                del item  # so that only the queue and the user keep it
        except (
            BaseException
        ) as error:  # also a KeyboardInterrupt or SystemExit of a source belongs to the user of the items
            end = error
        finally:
            if isinstance(items, Generator):
                items.close()
            made.put((None, end))

    thread = threading.Thread(target=make, name="in-advance", daemon=True)
    thread.start()
    try:
        while True:
            item, end = made.get()
            if isinstance(end, StopIteration):
                return
            if end is not None:
                raise end
            room.release()
            yield item
            del item
    finally:
        stopped.set()
        room.release()
        thread.join()
