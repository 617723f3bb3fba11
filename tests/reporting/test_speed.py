import pytest

from deit_jax import console
from deit_jax.models.flops import TrainFlops
from deit_jax.reporting import speed as module
from deit_jax.reporting.speed import Pace, Speed

FLOPS = TrainFlops(student=6_000_000_000, teacher=2_000_000_000)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_only_steps_between_restart_and_pause_are_timed(clock):
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


def test_unfinished_steps_do_not_increase_the_speed(clock):
    timer = Pace()
    timer.restart()
    for _ in range(3):  # dispatched immediately
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
    next(batches)  # before measuring
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


def test_metrics_are_per_device_except_the_total():
    speed = Speed(batch_size=256, num_devices=4, flops=FLOPS, peak_flops=64e12).metrics(0.5)
    assert speed["images_per_second"] == pytest.approx(512)
    assert speed["images_per_second_per_device"] == pytest.approx(128)
    assert speed["model_tflops_per_second"] == pytest.approx(128 * 8e9 / 1e12)
    assert speed["mfu"] == pytest.approx(128 * 8e9 / 64e12)
    assert speed["mfu_teacher"] == pytest.approx(128 * 2e9 / 64e12)


def test_without_a_known_peak_mfu_is_left_out():
    assert not any("mfu" in name for name in Speed(8, 1, FLOPS, None).metrics(1.0))


@pytest.mark.parametrize(
    ("devices", "peak", "expected"),
    [(4, 64e12, "512 images/s, 128 per device, MFU 1.6 %"), (1, None, "512 images/s  ETA")],
)
def test_the_progress_line_shows_the_speed(capsys, devices, peak, expected):
    rates = Speed(256, devices, FLOPS, peak).metrics(0.5)
    console.progress(
        step=1, total_steps=2, epoch=0.5, loss=1.0, learning_rate=1e-3, speed=rates, data_wait=0.0, eta=0.5
    )
    assert expected in capsys.readouterr().out
