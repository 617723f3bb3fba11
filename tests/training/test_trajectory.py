"""Compares 100 steps of our trainer with recorded ones of timm and PyTorch's AdamW: see benchmarks/trajectory.py."""

import numpy as np
import pytest

from tests.training import trajectory

# The run stays within 1e-5 of PyTorch's; a parameter that decays on one side only is 2e-3 away at the end.
CLOSE = 1e-4


@pytest.fixture(scope="module")
def torch():
    return trajectory.load_golden()


@pytest.fixture(scope="module")
def given():
    config = trajectory.trajectory_config("hard")
    return config, *trajectory.plan_and_batches(config)


@pytest.fixture(scope="module")
def ours(given):
    return trajectory.run_ours(*given)


def test_both_sides_used_the_same_batches(given, torch):
    assert trajectory.checksum(given[2]) == torch["checksum"]


@pytest.mark.parametrize("kind", ["params", "ema"])
def test_the_final_weights_match_pytorch(ours, torch, kind):
    assert trajectory.names_of(ours, kind) == trajectory.names_of(torch, kind)
    distances = trajectory.distances(ours, torch, kind)
    worst = max(distances, key=distances.get)
    print(f"largest relative L2 distance: {distances[worst]:.1e}, {worst}")
    assert distances[worst] <= CLOSE <= trajectory.BOUND
    # The gradient of the key's bias is 0 except for rounding, which changes it by at most the learning rate per step.
    assert trajectory.key_bias_difference(ours, torch, kind) <= torch["learning_rate"].sum()


def test_the_final_weights_match_relative_to_their_change(ours, torch):
    distances = trajectory.distances(ours, torch, start=ours)
    worst = max(distances, key=distances.get)
    print(f"largest L2 distance relative to the way: {distances[worst]:.1e}, {worst}")
    assert distances[worst] <= CLOSE


def test_every_loss_and_gradient_matches_pytorch(ours, torch):
    differences = trajectory.loss_differences(ours, torch)
    print(differences)
    assert max(differences[name] for name in trajectory.LOSSES) <= 1e-5
    assert differences["grad_norm"] <= 1e-3
    assert ours["loss"][-1] < 0.9 * ours["loss"][0]


def test_the_rates_follow_the_released_schedule_and_are_high_enough(ours, torch):
    np.testing.assert_allclose(ours["learning_rate"], torch["learning_rate"], rtol=1e-6)
    assert np.sum(torch["learning_rate"] > 1e-4) >= trajectory.STEPS / 2
    np.testing.assert_allclose(torch["learning_rate"][:8], 1e-6)  # two epochs: the released lag
    assert torch["learning_rate"].max() > 9e-4


@pytest.mark.long
def test_rounding_cannot_change_the_decisions_of_the_teacher(given, torch):
    logits, theirs = trajectory.teacher_logits(trajectory.first_epoch(*given)), torch["teacher_logits"]
    assert logits.shape == theirs.shape == (4, 32, 10)
    difference, margin = np.abs(logits - theirs).max(), min(map(trajectory.margins, (logits, theirs)), key=np.min).min()
    print(f"logits differ by {difference:.1e}, smallest margin {margin:.1e}")
    assert margin > 1e-3
    assert margin > 100 * difference
    np.testing.assert_array_equal(logits.argmax(-1), theirs.argmax(-1))
    assert set(np.unique(logits.argmax(-1))) == set(range(10))


@pytest.mark.long
@pytest.mark.parametrize("kind", trajectory.KINDS)
def test_in_float64_both_agree(kind, torch):
    config = trajectory.trajectory_config(kind)
    with trajectory.in_float64():
        ours = trajectory.run_ours(config, *trajectory.plan_and_batches(config), "float64")
    theirs = {name: torch[f"{kind}64/{name}"] for name in (*trajectory.LOSSES, "grad_norm")}
    differences = trajectory.loss_differences(ours, theirs)
    print(differences)
    assert max(differences.values()) <= 1e-10
