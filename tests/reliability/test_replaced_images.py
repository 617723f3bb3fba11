"""Replaced images are counted over the whole run, including interruptions."""

import json

import numpy as np
import pytest
from PIL import Image

from deit_jax.training.loop import train
from tests.tiny import STUDENT, tiny_config

STEPS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 8)):
        for number in range(count):
            path = root / split / "ab"[number % 2] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (28, 28), dtype=np.uint8)).save(path)
    for number in (4, 6, 13):  # two neighbours and one alone
        (root / "train" / "ab"[number % 2] / f"{number:02d}.png").write_bytes(b"")
    return root


def run(folder, workdir, steps):
    config = tiny_config(
        distillation__kind="none", teacher__weights="", model__name="deit_tiny_patch16_224", data__source="folder",
        data__path=str(folder), data__repeats=1, data__on_bad_image="replace", train__batch_size=8, augment__groups_per_block=2,
        evaluation__batch_size=8, evaluation__every_epochs=0, checkpoint__every_steps=3, train__max_steps=steps,
        log__every_steps=4, ema__decay=0.0,
    )  # fmt: skip
    with config.unlocked():
        config.model.overrides = STUDENT | {"depth": 1}
    train(config, workdir)
    return json.loads((workdir / "results.json").read_text())["replaced_images"]


@pytest.mark.long
def test_the_count_does_not_depend_on_interruptions(folder, tmp_path, capsys):
    """Rule 8 of deit_jax/training/loop.py counts them; each checkpoint has the count up to its step."""
    whole = run(folder, tmp_path / "whole", STEPS)
    output = capsys.readouterr().out.replace("\n", "")
    assert output.count("warning: replaced: ") == 3 and "04.png" in output
    # Every epoch of five steps reads each faulty file once, and the second neighbor also as the replacement of the first.
    assert whole == STEPS // 5 * 4 and f"{whole} time(s) an image was replaced" in output
    for steps in (2, 7, STEPS):
        parts = run(folder, tmp_path / "parts", steps)
    assert parts == whole
