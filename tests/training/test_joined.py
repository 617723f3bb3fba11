"""Compares 64 steps of the whole recipe with timm and PyTorch's AdamW, recorded and live: see benchmarks/trajectory.py."""

import functools

import numpy as np
import pytest

from benchmarks.trajectory import run_peer
from tests.training import joined, trajectory

pytestmark = pytest.mark.long


@functools.cache
def run_of_ours(kind):
    config = joined.config_of(kind)
    return trajectory.run_ours(config, joined.plan_of(config), joined.loaded())


@pytest.fixture(scope="module")
def golden():
    return joined.load_golden()


@pytest.fixture(params=joined.KINDS)
def kind(request):
    return request.param


def test_all_random_decisions_occur(kind):
    """Crops differ, rows are mixed, and the configuration enables the other random parts."""
    config, given, loaded = joined.config_of(kind), joined.augmented(), joined.loaded()
    assert all(config[name] == joined.config_of("none")[name] for name in ("augment", "data", "train", "seed"))
    assert config.augment.rand_augment and config.augment.erase_probability and config.data.repeats == 3
    assert joined.plan_of(config).total_steps == len(loaded["label"]) >= 48
    assert len(np.unique(loaded["image"].reshape(loaded["label"].size, -1), axis=0)) == loaded["label"].size
    targets = np.sort(given["target"].reshape(-1, trajectory.CLASSES))
    np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(targets[:, 0], 0.1 / trajectory.CLASSES, atol=1e-6)
    # In the others the partner has the same label, or lam is near 0 or 1.
    assert 0.5 < np.mean(targets[:, -2] > 0.02) < 0.95


def test_recorded_runs_used_the_same_batches(golden):
    np.testing.assert_allclose(joined.batch_figures(joined.augmented()), golden["batches"], rtol=1e-5, atol=1e-5)


def test_the_run_matches_the_recorded_pytorch_run(kind, golden):
    differences = joined.recorded_differences(run_of_ours(kind), golden, kind)
    print(f"{kind}: " + "  ".join(f"{name} {value:.1e}" for name, value in differences.items()))
    assert len(differences) == (6 if kind == "none" else 7)
    assert differences.pop("learning_rate") <= 1e-6
    assert max(differences.values()) <= joined.BOUND


def test_rounding_cannot_change_the_decisions_of_the_teacher(golden):
    logits = trajectory.teacher_logits(joined.augmented()["image"])
    np.testing.assert_array_equal(logits.argmax(-1), golden["teacher_decisions"])
    assert np.bincount(logits.argmax(-1).ravel(), minlength=trajectory.CLASSES).min() > 10
    margin = trajectory.margins(logits).min()
    assert abs(margin - golden["teacher_margin"]) < 0.02 * golden["teacher_margin"]


def test_the_run_matches_the_installed_timm(kind, timm_python):
    config = joined.config_of(kind)
    ours, theirs = run_of_ours(kind), run_peer(timm_python, config, joined.plan_of(config), joined.augmented())
    np.testing.assert_allclose(ours["learning_rate"], theirs["learning_rate"], rtol=1e-6)
    losses = trajectory.loss_differences(ours, theirs)
    print(f"{kind}: " + "  ".join(f"{name} {value:.1e}" for name, value in losses.items()))
    assert max(losses.values()) <= joined.BOUND
    for tensors in ("params", "ema"):
        assert trajectory.names_of(ours, tensors) == trajectory.names_of(theirs, tensors)
        distances = trajectory.distances(ours, theirs, tensors)
        worst = max(distances, key=distances.get)
        print(f"{kind} {tensors}: {distances[worst]:.1e}, {worst}")
        assert distances[worst] <= joined.BOUND
        assert trajectory.key_bias_difference(ours, theirs, tensors) <= ours["learning_rate"].sum()


def test_a_different_rule_of_current_timm_is_detected(golden):
    """Without weight decay dist_token ends at another value; no other parameter changes as much."""
    config = joined.config_of("hard")
    config.optimizer.no_decay = (*config.optimizer.no_decay, "^dist_token$")
    run = trajectory.run_ours(config, joined.plan_of(config), joined.loaded())
    distances = joined.recorded_distances(run, "params", golden["hard/params"])
    assert max(distances, key=distances.get) == "dist_token"
    assert distances["dist_token"] > 10 * joined.BOUND
