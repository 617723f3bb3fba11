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
    [difference] = re.findall(r"checked in onnxruntime: .* at most (\S+), relative", done.stdout)
    assert float(difference) < 1e-5 and done.stderr == ""


def test_a_folder_of_images_without_classes_is_refused(photos, tmp_path):
    line = refused("--config=configs/own_images.py", f"--config.data.path={photos / CLASSES[0]}",
                   f"--workdir={tmp_path / 'run'}")  # fmt: skip
    assert "no class folders; put the images of each class in its own folder" in line
    assert not (tmp_path / "run").exists()
