import pytest

from deit_jax.models.flops import TrainFlops
from deit_jax.reporting import console
from deit_jax.reporting.speed import Speed

FLOPS = TrainFlops(student=6_000_000_000, teacher=2_000_000_000)


def test_figures_are_of_one_device_but_for_the_total():
    speed = Speed(batch_size=256, num_devices=4, flops=FLOPS, peak_flops=64e12).metrics(0.5)
    assert speed["images_per_second"] == pytest.approx(512)
    assert speed["images_per_second_per_device"] == pytest.approx(128)
    assert speed["model_tflops_per_second"] == pytest.approx(128 * 8e9 / 1e12)
    assert speed["mfu"] == pytest.approx(128 * 8e9 / 64e12)
    assert speed["mfu_teacher"] == pytest.approx(128 * 2e9 / 64e12)


def test_without_a_known_peak_there_is_no_mfu():
    assert not any("mfu" in name for name in Speed(8, 1, FLOPS, None).metrics(1.0))


@pytest.mark.parametrize(
    ("devices", "peak", "told"), [(4, 64e12, "512 images/s, 128 a device, MFU 1.6 %"), (1, None, "512 images/s  ETA")]
)
def test_the_progress_line_tells_them(capsys, devices, peak, told):
    rates = Speed(256, devices, FLOPS, peak).metrics(0.5)
    console.progress(
        step=1, total_steps=2, epoch=0.5, loss=1.0, learning_rate=1e-3, speed=rates, data_wait=0.0, eta=0.5
    )
    assert told in capsys.readouterr().out
