import jax
import pytest

from deit_jax.errors import UserError
from deit_jax.evaluation.timing import Timing, fits, search_batch, time_runs


def test_warmup_is_not_timed():
    calls = []
    assert len(time_runs(lambda: calls.append(0), runs=4, warmup=3)) == 4
    assert len(calls) == 7
    assert sum(time_runs(lambda: None, runs=1, warmup=0, at_least=0.01)) >= 0.01


def test_mean_and_median():
    timing = Timing(10, [0.1, 0.1, 0.8])
    assert timing.mean == pytest.approx(30 / 1.0)
    assert timing.median == pytest.approx(100)


def test_search_chooses_the_largest_that_fits():
    search = search_batch(lambda size: None if size > 100 else 1000 - size, start=8, until_full=True)
    assert search.batch_size == 64  # though smaller ones are faster
    assert search.tried == [(8, 992), (16, 984), (32, 968), (64, 936), (128, None)]
    assert "largest that fits" in search.rule


def test_search_chooses_the_fastest_without_memory_limit():
    speeds = {1: 10.0, 2: 20.0, 4: 20.1, 8: 30.0, 16: 30.5, 32: 30.2}
    search = search_batch(speeds.get, start=1, until_full=False)
    assert search.batch_size == 16 and len(search.tried) == 6
    assert "3 %" in search.rule


def test_search_without_a_fitting_batch():
    with pytest.raises(UserError, match="a batch of 256 images does not fit"):
        search_batch(lambda size: None, start=256, until_full=True)


def test_fits_passes_other_errors():
    def fail(message):
        raise jax.errors.JaxRuntimeError(message)

    assert fits(lambda: 3.0) == 3.0
    assert fits(lambda: fail("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 5 bytes.")) is None
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        fits(lambda: fail("INTERNAL: something else"))
