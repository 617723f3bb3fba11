import pytest

from deit_jax.reporting import pace
from deit_jax.reporting.pace import Pace, duration


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    return now


def test_only_steps_between_restart_and_pause_count(clock):
    timer = Pace()
    assert timer.seconds_per_step() is None
    timer.step()  # compiling: not measured
    clock[0] += 50
    timer.restart()
    assert timer.seconds_per_step() is None
    for _ in range(4):
        clock[0] += 2
        timer.step()
    assert timer.seconds_per_step() == pytest.approx(2)
    timer.pause()
    clock[0] += 1000  # evaluating
    assert timer.seconds_per_step() == pytest.approx(2)
    timer.restart()
    clock[0] += 12
    timer.step()
    assert timer.seconds_per_step() == pytest.approx((8 + 12) / 5)


def test_steps_that_the_device_is_still_at_do_not_make_it_faster(clock):
    timer = Pace()
    timer.restart()
    for _ in range(3):  # handed over at once
        timer.step()
    done_by_then = timer.steps - 2
    clock[0] += 5  # one of them is done
    assert timer.seconds_per_step(done_by_then) == pytest.approx(5)
    assert timer.seconds_per_step(0) is None


def test_late_batches_count_as_waiting_and_early_ones_do_not(clock):
    timer, idle = Pace(), [True]

    def slow():
        for item in range(4):
            clock[0] += 3
            yield item

    batches = timer.waiting(slow(), lambda: idle[0])
    next(batches)  # before the pace runs
    timer.restart()
    assert timer.data_wait() is None
    for late in (True, False, True):
        idle[0] = late
        next(batches)
        clock[0] += 1
        timer.step()
    assert timer.seconds_per_step() == pytest.approx(4)
    assert timer.data_wait() == pytest.approx(6 / 12)
    assert next(batches, "end") == "end"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (200, "3m 20s"), (7500, "2h 05m")])
def test_durations(seconds, text):
    assert duration(seconds) == text
