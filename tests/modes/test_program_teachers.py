"""A run's network as an exported program that teaches."""

import json

import jax
import numpy as np
import pytest

from deit_jax.config import ConfigError
from deit_jax.config_check import validate
from deit_jax.modes.compared import compared_networks
from deit_jax.modes.export import export
from deit_jax.modes.initial import load_initial
from deit_jax.modes.teacher import abstract_teacher, load_teacher
from deit_jax.network import load_network
from deit_jax.network_sources import Wanted
from deit_jax.training.loop import train
from deit_jax.weights import WeightsError
from deit_jax.weights.class_names import imagenet_class_names, imagenet_wordnet_ids
from tests.modes.workdirs import untrained
from tests.tiny import tiny_config, tiny_teacher_config


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


def test_the_names_of_a_program_are_matched_with_wordnet_ids(tmp_path):
    """As those of a file, and of an export by an earlier version, which has the readable names."""
    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 8, 8, 3"), np.float32)
    made = jax.export.export(jax.jit(lambda x: x.mean((1, 2, 3))[:, None] + np.zeros(1000, np.float32)))(images)
    (tmp_path / "model.jax").write_bytes(made.serialize())
    about = {"mean": [0, 0, 0], "std": [1, 1, 1], "class_names": imagenet_class_names()}
    (tmp_path / "preprocessing.json").write_text(json.dumps(about))
    ids = imagenet_wordnet_ids()
    wanted = Wanted("program", lambda *_: None, 8, class_names=ids, section="config.teacher")
    assert load_network(tmp_path, wanted).class_names == ids


def test_a_program_with_more_outputs_than_classes_teaches(tmp_path):
    config = tiny_teacher_config()
    config.num_classes = 12
    export(untrained(tmp_path / "run", config), tmp_path / "program", layout="jax_float", which="raw")
    assert len(json.loads((tmp_path / "program/preprocessing.json").read_text())["class_names"]) == 10
    teacher = load_teacher(tiny_config(num_classes=12, teacher__weights=str(tmp_path / "program")), tmp_path)
    assert teacher.model.num_classes == 12 and len(teacher.networks[0].class_names) == 10


def test_a_program_has_no_moving_average(program, tmp_path):
    with pytest.raises(WeightsError, match=f"{program}: there is no moving average of a program: use the raw weights"):
        load_teacher(tiny_config(teacher__weights=str(program), teacher__variables="ema"), tmp_path)


def test_a_program_is_not_compared(program, trained_teacher):
    with pytest.raises(ConfigError, match=f"^{program} is a program"):
        compared_networks(trained_teacher, [str(program)], which="raw")


def test_a_program_is_not_a_student(program, tmp_path):
    config = tiny_config(model__weights=str(program))
    with pytest.raises(
        ConfigError, match=r"is a program, whose weights cannot be trained or read: only config.teacher"
    ):
        load_initial(config, tmp_path)
