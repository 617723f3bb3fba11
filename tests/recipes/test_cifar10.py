"""The study on CIFAR-10: its arguments, and a run on a folder of small images."""

import json

import numpy as np
import pytest
from PIL import Image

from configs.cifar10 import get_config
from deit_jax.config import ConfigError
from deit_jax.config_check import validate
from tests.end_to_end.commands import succeed

STUDENTS = ("none", "soft", "hard", "soft,no_token", "hard,no_token", "two_tokens")


@pytest.mark.parametrize("source", ["", ",folder"])
def test_every_argument_is_valid_and_has_the_same_images(source):
    images = None
    for argument in ("teacher", *STUDENTS):
        config = get_config(argument + source)
        if config.distillation.kind in ("soft", "hard"):
            config.teacher.weights = "runs/teacher"
        config.data.path = "/images" if source else config.data.path
        validate(config)
        seen = config.data.to_dict(), config.evaluation.to_dict(), config.augment.mean, config.image_size
        assert images in (None, seen)
        images = seen
    held_out = (config.data.train_split, config.data.eval_split, config.data.held_out)
    assert held_out == (("train", "validation", 0.1) if source else ("train[:90%]", "train[90%:]", 0.0))
    assert config.evaluation.extra.test.split == "test"


def test_the_arms_differ_in_what_they_are_named_for():
    kinds = {name: (config := get_config(name)).distillation.kind + ("_distilled" in config.model.name) * " token"
             for name in STUDENTS}  # fmt: skip
    assert kinds == {
        "none": "none", "soft": "soft token", "hard": "hard token", "soft,no_token": "soft", "hard,no_token": "hard",
        "two_tokens": "labels token",
    }  # fmt: skip
    same = ("optimizer", "schedule", "augment", "train", "ema")
    recipes = [{field: get_config(name)[field].to_dict() for field in same} for name in STUDENTS]
    assert all(recipe == recipes[0] for recipe in recipes)
    with pytest.raises(ConfigError, match="no_token is only for soft or hard"):
        get_config("two_tokens,no_token")


@pytest.mark.long
def test_a_run_is_scored_on_held_out_images_and_at_its_end_on_the_test_images(tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / "images"
    for split, count in (("train", 40), ("test", 6)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    run = tmp_path / "run"
    succeed("--config=configs/cifar10.py:two_tokens,folder", f"--workdir={run}", f"--config.data.path={folder}",
            f"--config.evaluation.extra.test.path={folder}", "--config.train.batch_size=32", "--config.train.epochs=1",
            "--config.model.overrides.depth=1")  # fmt: skip
    results = json.loads((run / "results.json").read_text())
    assert (results["eval_images"], results["extra"]["test"]["images"]) == (8, 12)
    assert {"class", "distillation", "fused_logits"} <= set(results["extra"]["test"]["scores"]["ema"])
