"""A run's network as an exported program that teaches."""

import json

import jax
import numpy as np
import pytest

from deit_jax.config import ConfigError
from deit_jax.config_check import validate
from deit_jax.modes.export import export
from deit_jax.modes.initial import load_initial
from deit_jax.modes.teacher import abstract_teacher, load_teacher
from deit_jax.training.loop import train
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def program(trained_teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("program")
    export(trained_teacher, folder, layout="jax_float", which="raw")
    return folder


def test_a_program_answers_as_the_network_it_was_made_of(program, trained_teacher, tmp_path):
    config = tiny_config(teacher__weights=str(program), augment__mean=(0.4, 0.5, 0.6), augment__std=(0.2, 0.3, 0.4))
    validate(config)
    teacher = load_teacher(config, tmp_path)
    network = load_teacher(tiny_config(teacher__weights=str(trained_teacher)), tmp_path)
    about = json.loads((program / "preprocessing.json").read_text())
    assert about["dtype"] == "float32" and not about["normalised_by_the_program"]
    rgb = np.random.default_rng(0).uniform(size=(5, 28, 28, 3)).astype(np.float32)

    def answer(teacher, mean, std):
        images = ((rgb - np.asarray(mean)) / np.asarray(std)).astype(np.float32)
        return jax.jit(teacher.model.apply)(teacher.variables, images).logits

    found = answer(teacher, config.augment.mean, config.augment.std)
    np.testing.assert_allclose(found, answer(network, about["mean"], about["std"]), atol=1e-4)
    assert str(program) in teacher.description and not jax.tree.leaves(teacher.variables)
    assert teacher.networks[0].class_names == network.networks[0].class_names
    assert abstract_teacher(config, 10, 28, "tpu").model == teacher.model


def test_a_run_under_a_program_learns_what_it_learns_under_the_network(program, trained_teacher, tmp_path):
    losses = []
    for weights in (program, trained_teacher):
        config = tiny_config(teacher__weights=str(weights), distillation__kind="soft")
        train(config, tmp_path / weights.name, load_teacher(config, tmp_path))
        rows = map(json.loads, (tmp_path / weights.name / "metrics.jsonl").read_text().splitlines())
        losses.append([row["train/loss"] for row in rows if "train/loss" in row])
    assert len(losses[0]) == 4
    np.testing.assert_allclose(*losses, rtol=1e-4)
    other = tmp_path / "other"
    export(trained_teacher, other, layout="jax_float", which="ema")
    config = tiny_config(teacher__weights=str(other), distillation__kind="soft", train__max_steps=5)
    with pytest.raises(ConfigError, match=r"was taught by program .*, the teacher is now program"):
        train(config, tmp_path / program.name, load_teacher(config, tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"teacher__mean": (0.5, 0.5, 0.5)},
            "config.teacher.mean and config.teacher.std cannot be set for the program",
        ),
        ({"num_classes": 12}, "has 10 classes, the student 12"),
        ({"image_size": 32}, "takes images of 28 pixels, the student's have 32: export it for 32 pixels"),
    ],
)
def test_a_program_that_does_not_fit_is_refused(program, tmp_path, change, message):
    config = tiny_config(teacher__weights=str(program), **change)
    with pytest.raises(ConfigError, match=message):
        load_teacher(config, tmp_path)
    with pytest.raises(ConfigError, match=message):
        abstract_teacher(config, config.num_classes or 10, config.image_size, "cpu")


def test_a_program_is_not_a_student(program, tmp_path):
    config = tiny_config(model__weights=str(program))
    with pytest.raises(
        ConfigError, match=r"is a program, whose weights cannot be trained or read: only config.teacher"
    ):
        load_initial(config, tmp_path)
