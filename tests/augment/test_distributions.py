"""Crops, flips, operations, erasing, mixing and whole images are distributed as in timm; see tests/augment/distributions.py."""

import subprocess

import numpy as np
import pytest

from benchmarks.peers import distributions_timm as peer
from tests.augment import distributions
from tests.augment.distributions import DRAWS

pytestmark = pytest.mark.long
TESTS = 116  # p-values of all statistics


def show(title, found):
    smallest = sorted(found.items(), key=lambda item: item[1])[:5]
    print(f"{title}: {len(found)} p-values, the smallest " + ", ".join(f"{p:.1e} ({name})" for name, p in smallest))


@pytest.fixture(scope="module")
def golden():
    return distributions.load_golden()


@pytest.fixture(scope="module")
def live(timm_python, tmp_path_factory):
    """Draws of the installed timm, with another seed than the recorded ones."""
    target = tmp_path_factory.mktemp("timm") / "draws.npz"
    subprocess.run([timm_python, peer.__file__, str(target), "2"], check=True)
    with np.load(target) as file:
        return dict(file)


def test_draws_match_recorded_timm(golden):
    values = distributions.ours()
    assert {f"{name}/counts" for name in values} == {name for name in golden if name.endswith("/counts")}
    found = distributions.p_values(values, golden)
    show("ours and recorded", found)
    assert len(found) == TESTS
    assert not distributions.rejected(found)


def test_draws_match_installed_timm(live):
    found = distributions.p_values(distributions.ours(), distributions.recording(live))
    show("ours and live", found)
    assert len(found) == TESTS
    assert not distributions.rejected(found)


def test_recorded_timm_matches_installed_timm(live, golden):
    found = distributions.p_values(live, golden)
    show("live and recorded", found)
    assert not distributions.rejected(found)


@pytest.mark.parametrize(
    ("part", "changes", "seen"),
    [
        ("crops", {"scale": (0.1, 1.0)}, "crop_375x500/area"),
        ("crops", {"ratio": (0.8, 1.25)}, "crop_375x500/log_ratio"),
        ("flips", {"flip_probability": 0.53}, "flip"),
        ("operations", {"rand_augment": "rand-m9-mstd0.5"}, "argument/Color"),
        ("operations", {"rand_augment": "rand-m9-mstd0.6-inc1"}, "argument/Rotate"),
        ("operations", {"rand_augment": "rand-m9-mstd0.5-inc1-p0.52"}, "operations/number"),
        ("erasing", {"erase_probability": 0.3}, "erasing/erased"),
        ("mixing", {"switch_probability": 0.53}, "mixing/cutmix"),
        ("mixing", {"mixup_alpha": 1.0}, "mixing/mixup"),
        ("mixing", {"cutmix_alpha": 0.8}, "mixing/cutmix_lam"),
        ("images", {"erase_probability": 0.5}, "image/max"),
        ("images", {"rand_augment": "rand-m7-mstd0.5-inc1"}, "image/std"),
    ],
)
def test_wrong_parameter_is_detected(part, changes, seen, golden):
    found = distributions.rejected(distributions.p_values(DRAWS[part](**changes), golden), TESTS)
    show(f"{part} with {changes}", found)
    assert seen in {name.split(",")[0] for name in found}


def sign_missing(operations, arguments):
    shear = operations == peer.OPERATIONS.index("ShearX")
    return operations, np.where(shear, np.abs(arguments), arguments)


def levels_not_clipped(operations, arguments):
    rotate = operations == peer.OPERATIONS.index("Rotate")
    clipped = rotate & (np.abs(arguments) >= 30)
    more = np.abs(np.random.RandomState(0).normal(0, 1.5, arguments.shape))
    return operations, arguments + clipped * np.sign(arguments) * more


def operation_missing(operations, arguments):
    return np.where(operations == peer.OPERATIONS.index("Equalize"), 0, operations), arguments


def same_operation_in_both_layers(operations, arguments):
    repeats = (operations[:, :1] != peer.NONE) & (np.random.RandomState(0).uniform(size=(len(operations), 1)) < 0.05)
    return np.where(repeats, operations[:, :1], operations), arguments


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (sign_missing, "argument/ShearX"),
        (levels_not_clipped, "argument/Rotate"),
        (operation_missing, "operations/each"),
        (same_operation_in_both_layers, "operations/chains"),
    ],
)
def test_wrong_draws_are_detected(fault, seen, golden, monkeypatch):
    statistics = peer.operation_statistics
    monkeypatch.setattr(peer, "operation_statistics", lambda *drawn: statistics(*fault(*drawn)))
    found = distributions.rejected(distributions.p_values(DRAWS["operations"](), golden), TESTS)
    show(fault.__name__, found)
    assert seen in {name.split(",")[0] for name in found}


def test_samples_of_the_same_distribution_pass(golden):
    """Both samples have timm's shares: p-values are only as small as expected by chance."""
    rng, all_found = np.random.RandomState(0), []
    for name in (name for name in golden if name.endswith("/counts")):
        counts = golden[name]
        one, other = rng.multinomial(counts.sum(), counts / counts.sum(), (2, 20))
        all_found.append(list(map(distributions.chi_square, one, other)))
        if name.replace("/counts", "/edges") in golden:
            all_found.append(list(map(distributions.kolmogorov_smirnov, one, other)))
    found = np.array(all_found)
    assert len(found) == TESTS
    smallest = found.min(0)
    assert np.all(smallest < 0.05)
    assert np.all(smallest * TESTS > 1e-3)
    assert 0.02 < np.mean(found < 0.05) < 0.06
