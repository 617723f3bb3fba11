import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.embedded_data import CLASS_NAMES
from configs import quickstart
from deit_jax.config import default_config
from deit_jax.data.registry import open_source
from deit_jax.models import create_model
from deit_jax.modes.teacher import load_teacher
from deit_jax.paths import expand_paths
from deit_jax.weights import files
from deit_jax.weights.class_names import read_class_names
from deit_jax.weights.errors import WeightsError
from deit_jax.weights.files import is_weights, is_workdir, read_file
from deit_jax.weights.loading import load_weights


def test_card_matches_the_quick_start():
    card = files.embedded_card()
    config = quickstart.get_config()
    assert (card["model"], card["overrides"]) == (config.teacher.name, config.teacher.overrides.to_dict())
    recipe = quickstart.get_config("teacher")
    assert card["all test images"]["top1"] - 0.5 < card["embedded test images"]["top1"] < 93
    assert (card["seed"], card["epochs"]) == (recipe.seed, recipe.train.epochs)
    assert card["training_images"] == 60_000 and card["command"].startswith(
        "python run.py --config=configs/quickstart.py:teacher"
    )
    assert card["all test images"]["images"] == 10_000 and card["all test images"]["top1"] >= 92
    assert files.embedded_file().stat().st_size < 1.5e6
    assert all(value.dtype == np.float16 for value in read_file("embedded").values())


def test_accuracy_of_the_card(tmp_path):
    config = quickstart.get_config()
    teacher = load_teacher(config, tmp_path)
    assert teacher.networks[0].class_names == CLASS_NAMES == read_class_names("embedded")
    test = open_source(config.data, "eval")
    images = np.stack([test[i].image for i in range(len(test))])
    labels = np.array([test[i].label for i in range(len(test))])
    mean, std = (jnp.array(value) for value in (config.augment.mean, config.augment.std))

    @jax.jit
    def decide(variables, pixels):
        colours = jnp.broadcast_to(pixels[..., None] / 255.0, (*pixels.shape, 3))
        return teacher.model.apply(variables, (colours - mean) / std).logits.argmax(-1)

    decided = np.concatenate([decide(teacher.variables, images[i : i + 500]) for i in range(0, len(images), 500)])
    card = files.embedded_card()["embedded test images"]
    assert card["images"] == len(images) == 2_000
    assert abs(100 * np.mean(decided == labels) - card["top1"]) < 0.3


def test_a_damaged_file_is_refused(tmp_path, monkeypatch):
    for name in (files._EMBEDDED_FILE.name, files._EMBEDDED_FILE.with_suffix(".json").name):
        shutil.copy(files._EMBEDDED_FILE.with_name(name), tmp_path / name)
    original, copy = files._EMBEDDED_FILE, tmp_path / files._EMBEDDED_FILE.name
    monkeypatch.setattr(files, "_EMBEDDED_FILE", copy)
    assert files.embedded_file() == copy
    content = bytearray(copy.read_bytes())
    content[-7] ^= 1  # a bit of the last array: the file still opens
    copy.write_bytes(content)
    with pytest.raises(WeightsError, match=r"is damaged .*: install deit_jax again"):
        read_file("embedded")
    files.embedded_card.cache_clear()
    copy.with_suffix(".json").write_text("{")
    with pytest.raises(WeightsError, match=r"json cannot be read .*: install deit_jax again"):
        files.embedded_card()
    shutil.copy(original.with_suffix(".json"), copy.with_suffix(".json"))
    copy.unlink()
    with pytest.raises(WeightsError, match=r"cannot be read .*: install deit_jax again"):
        read_file("embedded")


def test_embedded_is_not_a_path():
    assert is_weights(Path("embedded")) and not is_workdir("embedded")
    config = default_config()
    config.teacher.weights = config.model.weights = "embedded"
    expand_paths(config)
    assert config.teacher.weights == config.model.weights == "embedded"


def test_embedded_weights_do_not_fit_another_model():
    with pytest.raises(WeightsError, match="embedded"):
        load_weights("embedded", create_model("regnety_002", 10, 28))
