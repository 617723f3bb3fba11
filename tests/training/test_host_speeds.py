import jax
import numpy as np
import pytest

from deit_jax import console
from deit_jax.data.reading_speed import ReadingSpeed
from deit_jax.models.flops import TrainFlops
from deit_jax.parallel.mesh import make_mesh
from deit_jax.reporting.speed import Speed
from deit_jax.training import host_speeds
from deit_jax.training.host_speeds import HostSpeeds, compared, described_need, needed_images_per_second, row_of

SPEED = Speed(batch_size=1024, num_devices=8, flops=TrainFlops(100 * 10**9, 25 * 10**9), peak_flops=1e15)


def test_the_need_follows_from_the_peak_and_the_flops(monkeypatch):
    assert needed_images_per_second(SPEED) == pytest.approx(0.35 * 8e15 / 125e9)
    assert described_need(22400.0) == "22,400 images/s would keep the devices busy, at an assumed MFU of 35 %"
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    assert needed_images_per_second(SPEED) == pytest.approx(0.35 * 8e15 / 125e9 / 4)
    assert "in each process would keep" in described_need(5600.0)
    assert needed_images_per_second(unknown()) is None


def unknown():
    return Speed(1024, 8, SPEED.flops, None)


def test_a_host_that_will_starve_the_devices_is_a_warning_in_one_line(monkeypatch, capsys):
    reading = ReadingSpeed()
    reading.begin(4)
    host_speeds.compare_with_need(SPEED, reading)  # nothing was read
    assert capsys.readouterr().out == ""
    reading.add(3000, 2.0)
    host_speeds.compare_with_need(SPEED, reading)
    printed = capsys.readouterr().out
    assert printed.startswith(
        "warning: this host reads 6,000 images/s, and 22,400 are needed at an MFU of 35 %: the devices will"
    )
    assert printed.count("\n") == 1
    reading.add(30_000, 1.0)
    host_speeds.compare_with_need(SPEED, reading)
    assert capsys.readouterr().out == "this host reads 120,000 images/s, and 22,400 are needed at an MFU of 35 %\n"
    host_speeds.compare_with_need(unknown(), reading)
    assert capsys.readouterr().out == ""


def test_the_slowest_of_several_processes_is_named():
    line, too_slow = compared([900.0, 300.0, 800.0], 500.0)
    assert too_slow and line.startswith("the slowest process (number 1) reads 300 images/s, and 500 are needed")
    assert not compared([900.0, 800.0], 500.0)[1]


def test_the_reading_speed_is_that_of_the_time_since_the_last_question():
    reading = ReadingSpeed()
    assert reading.images_per_second() is None
    reading.begin(3)
    reading.add(100, 0.5)
    reading.add(200, 1.0)
    assert reading.images_per_second() == pytest.approx(3 * 300 / 1.5)
    assert reading.images_per_second() == pytest.approx(600)  # the reader waits
    reading.add(100, 1.0)
    assert reading.images_per_second() == pytest.approx(300)


def test_figures_of_processes_in_a_row():
    sent = np.array(
        [[0, 900, 0.0], [0, 900, 0.0], [1, 300, 0.5], [1, 300, 0.5], [2, 700, 0.1], [2, 700, 0.1]], np.float32
    )
    row = row_of(sent)
    assert row == pytest.approx({
        "hosts/slowest": 1, "hosts/images_per_second_slowest": 300, "hosts/images_per_second_median": 700,
        "hosts/data_wait_slowest": 0.5, "hosts/data_wait_median": 0.1,
    })  # fmt: skip
    sent[:, 1] = np.nan  # nothing was read yet
    assert set(row_of(sent)) == {"hosts/data_wait_slowest", "hosts/data_wait_median"}
    assert row_of(None) == {}


def test_one_process_exchanges_nothing_and_several_share_their_figures(monkeypatch):
    mesh, reading = make_mesh(), ReadingSpeed()
    assert HostSpeeds(mesh, reading).sent(0.2) is None
    hosts = HostSpeeds(mesh, reading)
    reading.add(64, 0.5)
    monkeypatch.setattr(host_speeds, "put_batch", lambda mesh, batch: batch)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert row_of(hosts.sent(0.25))["hosts/data_wait_slowest"] == pytest.approx(0.25)


def test_the_progress_line_names_the_slow_process(capsys):
    rates = SPEED.metrics(1.0)
    hosts = row_of(np.array([[0, 900, 0.0], [1, 300, 0.5], [2, 800, 0.04]], np.float32))
    line = {"step": 1, "total_steps": 2, "epoch": 0.5, "loss": 1.0, "learning_rate": 1e-3, "speed": rates, "eta": 1.0}
    console.progress(**line, data_wait=0.0, hosts=hosts)
    assert (
        "(waiting for data: 50 % of the time in the slowest process, median 4 %; process 1 reads 300 images/s, median 800)"
        in capsys.readouterr().out
    )
    console.progress(**line, data_wait=0.3, hosts={})
    assert "(30 % of the time waiting for data)" in capsys.readouterr().out
