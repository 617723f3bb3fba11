from pathlib import Path

import numpy as np
import pytest

from deit_jax.training.schedules import cosine_schedule

PAPER = {
    "peak": 1e-3,
    "warmup": 1e-6,
    "minimum": 1e-5,
    "epochs": 300,
    "warmup_epochs": 5,
    "kind": "released",
    "per_step": False,
}


@pytest.fixture(scope="module")
def golden():
    return np.load(Path(__file__).parents[1] / "golden" / "training.npz")


@pytest.mark.parametrize("kind", ["released", "plain"])
def test_the_rate_of_every_epoch_matches_timm(golden, kind):
    schedule = cosine_schedule(**PAPER | {"kind": kind}, steps_per_epoch=7)
    for offset in (0, 6):  # the first and the last step of an epoch
        rates = schedule(np.arange(300) * 7 + offset)
        np.testing.assert_allclose(rates, golden[f"{kind}_rates"], rtol=1e-6)


def test_the_released_schedule_lags_one_epoch():
    released, plain = (cosine_schedule(**PAPER | {"kind": kind}, steps_per_epoch=1) for kind in ("released", "plain"))
    assert float(released(0)) == float(released(1)) == float(plain(0))
    np.testing.assert_array_equal(released(np.arange(1, 300)), plain(np.arange(299)))


def test_the_released_fine_tuning_at_384_pixels_warms_up_for_a_fifth_of_its_epochs():
    schedule = cosine_schedule(**PAPER | {"peak": 5e-6, "minimum": 5e-6, "epochs": 30}, steps_per_epoch=1)
    expected = [1e-6, 1e-6, 1.8e-6, 2.6e-6, 3.4e-6, 4.2e-6] + [5e-6] * 24
    np.testing.assert_allclose(schedule(np.arange(30)), expected, rtol=1e-6)


def test_rates_per_step_match_timm_at_fractional_epochs(golden):
    schedule = cosine_schedule(**PAPER | {"kind": "plain", "per_step": True}, steps_per_epoch=7)
    np.testing.assert_allclose(schedule(np.arange(0, 2100, 31)), golden["per_step_rates"], rtol=1e-6)


def test_steps_past_the_end_keep_the_last_rate():
    schedule = cosine_schedule(**PAPER, steps_per_epoch=7)
    assert float(schedule(10**6)) == float(schedule(299 * 7))


def test_no_warmup_starts_at_the_peak():
    schedule = cosine_schedule(**PAPER | {"warmup_epochs": 0, "kind": "plain"}, steps_per_epoch=1)
    np.testing.assert_allclose(schedule(0), 1e-3, rtol=1e-6)


def test_an_unknown_kind_raises():
    with pytest.raises(ValueError, match="'linear'"):
        cosine_schedule(**PAPER | {"kind": "linear"}, steps_per_epoch=1)
