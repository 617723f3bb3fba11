"""A short run of benchmarks/chaos.py; results of a long one are in docs/results.md."""

import random

import pytest

from benchmarks import chaos


def test_mutated_images_are_read_or_replaced_and_counted():
    tally = chaos.images(300, seed=1)
    assert tally["lost"] == [] and tally["counted"] == tally["replacements"] > tally["faulty"] > 50


def test_mutated_weights_load_completely_or_raise_one_line(tmp_path):
    tally = chaos.weights(60, tmp_path, random.Random(1))
    assert tally["lost"] == [] and tally["refused"] + tally["loaded"] == tally["tried"] == 60
    assert min(tally["refused"], tally["loaded"]) > 0


@pytest.mark.long
def test_killed_runs_and_damaged_checkpoints_lose_nothing(tmp_path):
    """Rules 2, 3 and 4 of deit_jax/training/loop.py, for a kill at any time."""
    rng = random.Random(1)
    tally = chaos.kills(2, tmp_path, 2, rng)
    assert tally["lost"] == [] and tally["identical"] == tally["tried"] == 2
    tally = chaos.checkpoints(12, tmp_path, rng)
    assert tally["lost"] == [] and tally["detected"] == tally["tried"] == 12 and tally["resumed_identical"] == 2
