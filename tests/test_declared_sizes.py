"""Exported weights are used at the size and with the preprocessing that their folder, file or repository declares."""

import dataclasses
import json
import warnings

import numpy as np
import pytest

from deit_jax import Classifier, load_weights
from deit_jax.config import ConfigError
from deit_jax.data.decoding import CenterCrop, Squash
from deit_jax.models import create_model
from deit_jax.modes.evaluate import evaluate
from deit_jax.modes.export import Push, export
from deit_jax.modes.initial import load_initial
from deit_jax.modes.predict import predict
from deit_jax.modes.teacher import load_teacher
from deit_jax.network import load_network
from deit_jax.weights import save_weights, timm
from tests.hub_server import TOKEN, hub_server
from tests.inference.conftest import CHINA
from tests.modes.workdirs import untrained
from tests.tiny import STUDENT, tiny_config

NAME = "deit_tiny_distilled_patch16_224"
NORMALISATION = {"augment__mean": (0.4, 0.5, 0.6), "augment__std": (0.3, 0.3, 0.2)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run at 28 pixels, the size of no named model, with its own crop and normalisation."""
    config = tiny_config(evaluation__crop_ratio=0.8, **NORMALISATION)
    return untrained(tmp_path_factory.mktemp("declared") / "run", config)


@pytest.fixture(scope="module", params=["timm", "hf", "flax", "w.safetensors"])
def exported(request, run, tmp_path_factory):
    layout, _, file = request.param.partition(".")
    output = tmp_path_factory.mktemp("exported") / (request.param if file else "folder")
    export(run, output, layout="timm" if file else layout, which="raw")
    return output


def student(weights, **changes):
    config = tiny_config(model__weights=str(weights), distillation__kind="labels", teacher__weights="")
    config.image_size = None
    config.evaluation.crop_ratio = 0.875  # the default
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def test_a_classifier_equals_that_of_the_run(run, exported):
    expected = Classifier.from_workdir(run)
    with warnings.catch_warnings(action="error"):
        found = Classifier.from_weights(exported, NAME, **STUDENT)
    assert (found.crop, found.mean, found.std) == (expected.crop, expected.mean, expected.std)
    assert found.crop == CenterCrop(28, 0.8) and found.class_names == expected.class_names
    np.testing.assert_allclose(found.probabilities(CHINA), expected.probabilities(CHINA), atol=1e-6)


def test_what_the_caller_gives_wins(exported):
    named = Classifier.from_weights(exported, NAME, class_names=list("abcdefghij"), **STUDENT)
    assert (named.class_names[9], named.crop) == ("j", CenterCrop(28, 0.8))
    found = Classifier.from_weights(exported, NAME, image_size=42, crop_ratio=1.0, mean=(0.5,) * 3, **STUDENT)
    assert (found.crop, found.mean, found.std) == (CenterCrop(42, 1.0), (0.5,) * 3, NORMALISATION["augment__std"])
    assert "position embedding resized from 2x2 to 3x3" in found.description


def test_predict_equals_that_of_the_run(run, exported, capsys):
    [expected] = predict([str(CHINA)], workdir=run)
    [found] = predict([str(CHINA)], config=student(exported))
    assert [each.label for each in found] == [each.label for each in expected]
    assert found[0].probability == pytest.approx(expected[0].probability, abs=1e-6)
    assert "warning: weights of" not in capsys.readouterr().out
    predict([str(CHINA)], config=student(exported, image_size=42))
    assert "trained at 28 pixels, used at 42, position embeddings resized" in capsys.readouterr().out


def test_evaluation_is_at_the_declared_size(exported, capsys):
    results = evaluate(student(exported), None)
    assert (results["image_size"], results["trained_image_size"]) == (28, 28)
    assert "trained with mean (0.4, 0.5, 0.6), given" in capsys.readouterr().out  # the configuration's is used


def test_training_keeps_the_size_of_its_configuration(exported, tmp_path):
    initial = load_initial(student(exported, image_size=42), tmp_path)
    assert initial.variables["params"]["pos_embed"].shape[1] == 3 * 3 + 2
    config = student(exported)
    config.model.overrides.patch_size = 14
    assert load_initial(config, tmp_path).variables["params"]["pos_embed"].shape[1] == 16 * 16 + 2  # 224 / 14
    config = tiny_config(image_size=42, teacher__name=NAME, teacher__weights=str(exported))
    config.teacher.overrides = dict(STUDENT)
    with pytest.raises(ConfigError, match="trained at another image size than the student's 42 pixels"):
        load_teacher(config, tmp_path)


def test_a_repository_declares_its_size(run, tmp_path, monkeypatch, capsys):
    with hub_server(monkeypatch, tmp_path / "home"):
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for layout in ("timm", "hf"):
            export(run, tmp_path / layout, layout=layout, which="raw", push=Push(f"oak/{layout}"))
            classifier = Classifier.from_weights(f"hf:oak/{layout}", NAME, **STUDENT)
            assert (classifier.crop, classifier.mean) == (CenterCrop(28, 0.8), NORMALISATION["augment__mean"])
            hint = f"--config.model.weights=hf:oak/{layout} --config.model.name={NAME}"
            assert hint in capsys.readouterr().out and hint in (tmp_path / layout / "README.md").read_text()


def test_without_a_declaration_a_warning_names_both_sizes(run, tmp_path, capsys):
    path = export(run, tmp_path / "folder", layout="timm", which="raw")
    variables = load_weights(path, create_model(NAME, 10, 28, **STUDENT))
    bare = tmp_path / "bare.npz"
    np.savez(bare, **timm.from_variables(variables))
    message = "were trained at 28 pixels but are used at 224: position embedding resized from 2x2 to 16x16"
    with pytest.warns(UserWarning, match=message):
        Classifier.from_weights(bare, NAME, **STUDENT)
    predict([str(CHINA)], config=student(bare))
    out = capsys.readouterr().out
    assert message in out and "give --config.image_size=PIXELS" in out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"interpolation": "bilinear"}, "folder declare bilinear interpolation: images are resized by bicubic"),
        (
            {"crop_mode": "border"},
            r"folder declare a crop that this package does not have \(crop_mode='border', crop_pct=",
        ),
    ],
)
@pytest.mark.parametrize("image_size", [None, 28])
def test_what_is_not_done_as_declared_is_announced(run, tmp_path, changed, message, image_size):
    export(run, tmp_path / "folder", layout="timm", which="raw")
    card = json.loads((tmp_path / "folder/config.json").read_text())
    card["pretrained_cfg"] |= changed
    (tmp_path / "folder/config.json").write_text(json.dumps(card))
    with pytest.warns(UserWarning, match=message):
        Classifier.from_weights(tmp_path / "folder", NAME, image_size=image_size, **STUDENT)


@pytest.mark.parametrize("layout", ["timm", "hf", "flax", "w.safetensors"])
def test_a_whole_image_as_a_square_is_declared(run, tmp_path, layout):
    network = load_network(run)
    squash = dataclasses.replace(network, crop=Squash(28)).preprocessing
    output, layout = tmp_path / layout, layout if "." not in layout else "timm"
    save_weights(network.variables, network.model, output, layout, preprocessing=squash)
    assert Classifier.from_weights(output, NAME, **STUDENT).crop == Squash(28)
