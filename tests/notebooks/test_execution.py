"""The notebooks run from top to bottom, on little data and, in place of the published weights, random ones."""

import importlib.util
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import deit_jax
from tests.end_to_end.commands import environment
from tests.inference.conftest import CHINA, FLOWER

from .test_form import ROOT

pytestmark = pytest.mark.long
papermill = pytest.importorskip("papermill")
pytest.importorskip("ipykernel")


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """A notebook with parameters for those in its form; returns what its cells put out, by kind."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # this interpreter's kernel, not one of the user's
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    def run(name, **parameters):
        book = papermill.execute_notebook(
            ROOT / "notebooks" / f"{name}.ipynb", tmp_path / f"{name}.ipynb", parameters,
            kernel_name="python3", cwd=str(ROOT), progress_bar=False, execution_timeout=900,
        )  # fmt: skip
        outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
        data = [output["data"] for output in outputs if "data" in output]
        last = [cell for cell in book.cells if cell.cell_type == "code"][-1]
        shown = [output["data"] for output in last.outputs if "data" in output]
        assert any("image/png" in one or "data:image/svg" in one.get("text/html", "") for one in shown), last.source
        texts = [output["text"] for output in outputs if output.get("name") == "stdout"]
        errors = [output["text"] for output in outputs if output.get("name") == "stderr"]
        return {
            "pictures": sum("image/png" in one for one in data),
            "pages": [one["text/html"] for one in data if "text/html" in one],
            "text": re.sub(r"\x1b\[[\d;]*m", "", "".join(texts)),  # commands write to a terminal, in colours
            "errors": re.sub(r".*TqdmWarning: IProgress not found.*\n.*\n", "", "".join(errors)),  # of Colab's widgets
        }

    return run


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Files in timm's layout with the names and shapes of the published ones, by model."""

    def save(name):
        model = deit_jax.create_model(name)
        variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        return deit_jax.save_weights(variables, model, tmp_path_factory.mktemp("weights") / f"{name}.safetensors")

    return save


@pytest.fixture
def photographs(tmp_path):
    """Parts of two photographs: two classes of ten JPEGs."""
    folder = tmp_path / "photographs"
    draw = np.random.default_rng(0)
    for name, file in (("china", CHINA), ("flower", FLOWER)):
        (folder / name).mkdir(parents=True)
        whole = Image.open(file)
        for i in range(10):
            left, top = draw.integers(0, whole.width - 64), draw.integers(0, whole.height - 64)
            whole.crop((left, top, left + 64, top + 64)).save(folder / name / f"{i}.jpg")
    return folder


# Pixels and blocks: what makes a DeiT-Ti cheap to compile and to compute.
SMALL = "--config.image_size=32 --config.model.scan_blocks=True --config.evaluation.batch_size=8"


def test_quickstart(execute, tmp_path):
    run = tmp_path / "run"
    few = ["--config.train.max_steps=4", "--config.data.max_eval_images=100", "--config.evaluation.batch_size=100"]
    out = execute("quickstart", WORKDIR=str(run), FLAGS=" ".join(few))
    assert out["errors"] == "" and out["pictures"] == 2
    title = "deit_tiny_distilled_patch16_224 (depth=4, embed_dim=128, num_heads=4, patch_size=7) on 100 images after 4 steps"
    assert title in " ".join(out["text"].split())
    [page] = out["pages"]
    assert page.startswith("<iframe") and "Confusion matrix" in page
    assert json.loads((run / "results.json").read_text())["step"] == 4


def test_pretrained(execute, published, tmp_path):
    name = "deit_tiny_distilled_patch16_224"
    weights, exported = published(name), tmp_path / "exported"
    onnx, transformers = has("jax2onnx", "onnxruntime"), has("transformers", "torch")
    out = execute(
        "pretrained", SIZE="tiny", WEIGHTS=str(weights), PHOTOGRAPH=str(FLOWER), EXPORTED=str(exported),
        ONNX=onnx,
    )  # fmt: skip
    assert out["errors"] == "" and out["pictures"] == 3
    assert (exported / "attention.svg").read_text().count('class="block"') == 12
    assert f"{name}, weights of {weights}\n5.9 M parameters on 1 x cpu" in out["text"]
    differences = re.findall(r"^(\S.*?) +maximum difference (\S+),", out["text"], re.MULTILINE)
    assert [who for who, _ in differences] == (
        ["jax.export"] + ["ONNX runtime"] * onnx + ["transformers"] * transformers
    )
    assert all(float(value) < 1e-4 for _, value in differences)
    model = deit_jax.create_model(name)
    there, here = (deit_jax.load_weights(file, model) for file in (weights, exported / "timm"))
    jax.tree.map(np.testing.assert_array_equal, there, here)


@pytest.mark.parametrize("taught", [False, True])
def test_finetune(execute, published, photographs, tmp_path, taught):
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    archive = shutil.make_archive(tmp_path / "given", "zip", tmp_path, photographs.name)
    run, exported = tmp_path / "run", tmp_path / "exported"
    weights = published("deit_tiny_distilled_patch16_224" if taught else "deit_tiny_patch16_224")
    # A small teacher that is not fine-tuned: tests/recipes has the command that does this.
    teacher = {"MODEL": "tiny,distilled", "TEACHER": "random"} if taught else {}
    out = execute(
        "finetune", IMAGES=archive, EPOCHS=2, WEIGHTS=str(weights), WORKDIR=str(run), EXPORTED=str(exported),
        FLAGS=f"{SMALL} --config.train.batch_size=8" + " --config.teacher.name=regnety_002" * taught, **teacher,
    )  # fmt: skip
    assert out["errors"] == "" and out["pictures"] == 4 and len(out["pages"]) == 1
    text = "".join(out["text"].split())  # the command's lines are folded
    for expected in (
        "16 training images, 4 for evaluation, 2 classes (20% of every class held out)",
        "head_dist reinitialised" if taught else "head reinitialised",
        "2 images",
        "checked in onnxruntime",
        "of 4 held-out images are right",
    ):
        assert "".join(expected.split()) in text
    results = json.loads((run / "results.json").read_text())
    assert results["step"] == 4 and bool(results["teacher"]) == taught
    described = json.loads((exported / "transformers/config.json").read_text())
    assert list(described["id2label"].values()) == ["china", "flower"]
    assert (exported / "model.onnx").is_file() and exported.with_suffix(".zip").is_file()


def test_tpu(execute, published, photographs, tmp_path):
    pytest.importorskip("libtpu")
    run = tmp_path / "run"
    few = "--config.train.batch_size=16 --config.augment.group_size=4 --config.augment.rand_augment="
    out = execute(
        "tpu", MODEL="tiny", TOPOLOGY="v5e-4", DATA=str(photographs), EPOCHS=2, WORKDIR=str(run),
        WEIGHTS=str(published("deit_tiny_patch16_224")), FLAGS=f"{SMALL} {few}",
    )  # fmt: skip
    assert out["errors"] == "" and out["pictures"] == 1 and len(out["pages"]) == 1
    assert "8 x cpu" in out["text"] and "CPU 7" in out["text"]
    [whole] = re.findall(r"fsdp=1 +([\d.]+)", out["text"])
    [split] = re.findall(r"fsdp=8 +([\d.]+)", out["text"])
    assert float(whole) == pytest.approx(4 * 5_717_416 / 1e6, abs=0.1)
    assert float(whole) / 8 <= float(split) < float(whole) / 6  # small arrays are on every device
    assert json.loads((tmp_path / "run_throughput.json").read_text())["inference"]["images_per_second"] > 0
    compiled = json.loads((tmp_path / "run_compiled.json").read_text())
    assert compiled["topology"] == "v5e-4" and compiled["fits"]
    assert json.loads((run / "results.json").read_text())["step"] == 2


def test_a_command_that_fails_ends_the_notebook(execute, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="its last line says why"):
        execute("quickstart", WORKDIR=str(tmp_path / "run"), FLAGS="--config.train.epoch=3")
    assert "the nearest is --config.train.epochs" in (tmp_path / "quickstart.ipynb").read_text()
    assert not (tmp_path / "run").exists()


def has(*packages):
    """Whether all of them can be imported."""
    return all(importlib.util.find_spec(package) for package in packages)
