import contextlib
import threading
import time

import pytest

from deit_jax.parallel import in_advance as module
from deit_jax.parallel.in_advance import UNFINISHED_STEPS, Unfinished, in_advance


def until(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


def numbers(made, stop=100):
    for number in range(stop):
        made.append(number)
        yield number


@pytest.mark.parametrize("count", [1, 2, 5])
def test_as_many_items_are_made_in_advance_as_allowed(count):
    made = []
    with contextlib.closing(in_advance(numbers(made), count)) as items:
        for used in (1, 2, 3):
            next(items)
            until(lambda used=used: len(made) == used + count)
            time.sleep(0.02)
            assert len(made) == used + count
    assert list(in_advance(numbers([], 7), count)) == list(range(7))


def test_an_error_comes_after_the_items_before_it():
    def failing():
        yield 1
        yield 2
        raise OSError("the disk")

    items = in_advance(failing(), 3)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(OSError, match="the disk"):
        next(items)
    assert list(items) == []


def test_closing_stops_the_thread_and_closes_the_iterator():
    closed = []

    def endless():
        try:
            while True:
                yield threading.current_thread().name
        finally:
            closed.append(threading.current_thread().name)

    items = in_advance(endless(), 2)
    assert next(items) == "in-advance"
    items.close()
    assert closed == ["in-advance"]
    assert not [thread for thread in threading.enumerate() if thread.name == "in-advance"]


def test_items_that_were_used_are_freed():
    class Big:
        alive = 0

        def __init__(self):
            Big.alive += 1

        def __del__(self):
            Big.alive -= 1

    items = in_advance((Big() for _ in range(20)), 2)
    for item in items:
        del item
        until(lambda: Big.alive <= 3)  # two in advance, and one that the generator has just yielded
    assert Big.alive == 0


def test_few_steps_are_unfinished(monkeypatch):
    """Each of them keeps its batch in memory."""
    finished = []
    monkeypatch.setattr(module.jax, "block_until_ready", finished.append)
    steps = Unfinished()
    for step in range(10):
        steps.note(step)
        assert finished == list(range(step + 1 - UNFINISHED_STEPS))
