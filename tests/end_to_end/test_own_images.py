"""The commands of the README for your own images, from a folder of JPEGs to an ONNX file."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import deit_jax
from deit_jax.data.registry import EMBEDDED
from deit_jax.network import load_network
from tests.end_to_end.commands import refused, succeed

CLASSES = ("Trouser", "Sandal", "Bag")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes with 20 JPEGs each, of different sizes."""
    root = tmp_path_factory.mktemp("own") / "photos"
    with np.load(EMBEDDED) as file:
        images, labels, names = file["train_images"], file["train_labels"], list(file["class_names"])
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i, index in enumerate(np.flatnonzero(labels == names.index(name))[:20]):
            Image.fromarray(images[index]).resize((90 + i, 100)).save(root / name / f"{i}.jpg")
    return root


@pytest.mark.long
def test_from_a_folder_to_a_checked_program(photos, tmp_path):
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    # Random weights with the names and shapes of the published file.
    model = deit_jax.create_model("deit_tiny_patch16_224")
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    weights = deit_jax.save_weights(variables, model, tmp_path / "published.safetensors", "timm")

    run = tmp_path / "run"
    done = succeed("--config=configs/own_images.py", f"--config.data.path={photos}", f"--workdir={run}",
                   f"--config.model.weights={weights}", "--config.train.epochs=2")  # fmt: skip
    printed = " ".join(done.stdout.split())  # long paths fold the table's lines
    assert "48 training images, 12 for evaluation, 3 classes (20% of every class held out)" in printed
    assert "head reinitialised" in printed and done.stderr == ""
    assert (run / "report.html").is_file()
    results = json.loads((run / "results.json").read_text())
    assert results["step"] == 6

    files = [photos / name / "0.jpg" for name in CLASSES]
    output = tmp_path / "found.json"
    succeed("--mode=predict", f"--workdir={run}", *files, f"--output={output}")
    found = json.loads(output.read_text())
    assert [sorted(guess["label"] for guess in one["predictions"]) for one in found] == [sorted(CLASSES)] * 3

    succeed("--mode=export", f"--workdir={run}", f"--output={tmp_path / 'exported'}", "--layout=hf")
    described = json.loads((tmp_path / "exported/config.json").read_text())
    assert sorted(described["id2label"].values()) == sorted(CLASSES)

    done = succeed("--mode=export", f"--workdir={run}", f"--output={tmp_path / 'model.onnx'}", "--layout=onnx")
    [difference] = re.findall(r"checked in onnxruntime: maximum relative difference of the logits (\S+)", done.stdout)
    assert float(difference) < 1e-5 and done.stderr == ""


@pytest.mark.long
def test_own_folder_and_own_teacher_in_one_command(photos, tmp_path):
    """The smallest RegNetY in place of the published one, which has 81 million parameters."""
    given = []
    for name, field in (("deit_tiny_distilled_patch16_224", ""), ("regnety_002", "teacher.recipe.")):
        model = deit_jax.create_model(name)
        variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        weights = deit_jax.save_weights(variables, model, tmp_path / f"{name}.safetensors", "timm")
        given += [f"--config.{field}model.weights={weights}", f"--config.{field}train.epochs=1"]

    run = tmp_path / "run"
    command = ["--config=configs/own_images.py:distilled", f"--config.data.path={photos}", f"--workdir={run}",
               "--config.teacher.name=regnety_002", "--config.image_size=64", "--config.teacher.recipe.image_size=64",
               *given]  # fmt: skip
    done = succeed(*command)
    printed = " ".join(done.stdout.split())
    assert printed.count("48 training images, 12 for evaluation, 3 classes (20% of every class held out)") == 2
    assert "training the teacher first, then its student" in printed and done.stderr == ""
    teacher, student = (json.loads((folder / "results.json").read_text()) for folder in (run / "teacher", run))
    assert (teacher["step"], student["step"]) == (3, 3)
    assert (run / "report.html").is_file() and (run / "teacher/report.html").is_file()
    # The trunk is the published one's, BatchNorm's statistics too.
    network, published = load_network(run / "teacher"), variables
    for name in ("stem", "s1", "s3"):
        for collection in ("params", "batch_stats"):
            found, expected = (it[collection][name] for it in (network.variables, published))
            jax.tree.map(np.testing.assert_array_equal, found, expected)
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), *(it["params"]["s4"] for it in (network.variables, published))
    )
    assert max(jax.tree.leaves(moved)) > 0

    again = succeed(*command)  # nothing is left to do
    assert "step" not in again.stderr and json.loads((run / "results.json").read_text()) == student
    output = tmp_path / "found.json"
    succeed("--mode=predict", f"--workdir={run}", photos / "Bag/0.jpg", f"--output={output}")
    [found] = json.loads(output.read_text())
    assert sorted(guess["label"] for guess in found["predictions"]) == sorted(CLASSES)


def test_a_folder_of_images_without_classes_is_refused(photos, tmp_path):
    line = refused("--config=configs/own_images.py", f"--config.data.path={photos / CLASSES[0]}",
                   f"--workdir={tmp_path / 'run'}")  # fmt: skip
    assert "no class folders; put the images of each class in its own folder" in line
    assert not (tmp_path / "run").exists()
