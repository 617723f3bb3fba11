import datetime
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from deit_jax.augment.pipeline import prepare_for_evaluation
from deit_jax.inference.portable import PortableError, export_jax
from deit_jax.modes.export import export
from deit_jax.version import __version__
from tests.inference.conftest import CHINA, FLOWER
from tests.inference.examples import example


def expected_logits(classifier, paths):
    images = np.stack([classifier.prepare(path) for path in paths])
    images = prepare_for_evaluation(images, classifier.mean, classifier.std)
    return np.asarray(jax.jit(classifier.model.apply)(classifier.variables, images).logits)


# Appended to the example of docs/inference.md: its outputs, and whether it imported this package.
PROBE = """
print(json.dumps({
    "logits": np.asarray(answer["logits"]).tolist(),
    "probabilities": np.asarray(answer["probabilities"]).tolist(),
    "one": np.asarray(model(images[:1])["logits"]).tolist(),
    "none": [model(images[:0])[name].shape for name in ("logits", "probabilities")],
    "ours": [name for name in sys.modules if name.split(".")[0] in ("deit_jax", "flax", "orbax")],
    "platforms": exported.platforms,
}))
"""


def test_documented_example_runs_without_this_package(vit, regnet, tmp_path):
    folders = {}
    for classifier in (vit, regnet):
        folder = folders[classifier] = tmp_path / type(classifier.model).__name__
        assert export_jax(classifier, folder) == folder / "model.jax"
    # Both in one process, because starting one takes most of the time.
    programs = [
        example("load_jax")
        .replace('"exported_jax"', repr(str(folder)))
        .replace("PHOTOS", repr([str(CHINA), str(FLOWER)]))
        for folder in folders.values()
    ]
    script = "import sys\n" + "".join(program + PROBE for program in programs)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == 2
    for classifier, answer in zip(folders, found, strict=True):
        wanted = expected_logits(classifier, [CHINA, FLOWER])
        np.testing.assert_allclose(answer["logits"], wanted, atol=1e-5)
        np.testing.assert_allclose(answer["one"], wanted[:1], atol=1e-5)  # another batch size, the same program
        np.testing.assert_allclose(answer["probabilities"], classifier.probabilities([CHINA, FLOWER]), atol=1e-5)
        assert answer["none"] == [[0, 10], [0, 10]]
        assert answer["ours"] == []
        assert answer["platforms"] == ["cpu", "cuda", "tpu"]


def test_preprocessing_file(vit_workdir, tmp_path):
    before = datetime.datetime.now(datetime.UTC).date()
    export(vit_workdir, tmp_path, layout="jax", which="ema")
    after = datetime.datetime.now(datetime.UTC).date()
    found = json.loads((tmp_path / "preprocessing.json").read_text())
    assert (found["resize"], found["crop"]) == (32, 28)
    assert found["mean"] == [0.485, 0.456, 0.406]
    assert found["class_names"][9] == "Ankle boot"
    assert "ema weights" in found["model"]
    assert before <= datetime.date.fromisoformat(found["date"]) <= after  # the test may run at midnight
    assert (found["jax_version"], found["deit_jax_version"]) == (jax.__version__, __version__)
    assert found["format"] == 1
    exported = jax.export.deserialize(bytearray((tmp_path / "model.jax").read_bytes()))
    assert str(exported.in_avals[0]) == "uint8[batch_plus_1 - 1,28,28,3]"


def test_invalid_folders_are_rejected(vit, vit_workdir, tmp_path):
    with pytest.raises(PortableError, match=r"preprocessing.json: give a folder$"):
        export_jax(vit, tmp_path / "model.jax")
    with pytest.raises(ValueError, match="is the --workdir of a training run: give another folder"):
        export(vit_workdir, vit_workdir, layout="jax", which="raw")
    assert not (tmp_path / "model.jax").exists()
