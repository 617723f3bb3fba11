import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax import Classifier, create_model
from deit_jax.augment.pipeline import prepare_for_evaluation
from deit_jax.config import ConfigError
from deit_jax.data.decoding import CenterCrop
from deit_jax.inference.onnx_file import _matmul_permutations, check_onnx, export_onnx
from deit_jax.inference.portable import PortableError
from deit_jax.modes.export import export
from tests.inference.conftest import CHINA, FLOWER
from tests.inference.examples import example
from tests.tiny import TEACHER


def test_missing_jax2onnx_and_invalid_arguments(vit, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(
        PortableError,
        match=r"^layout=onnx needs jax2onnx: pip install onnx onnx-ir onnxruntime, then pip install --no-deps jax2onnx$",
    ):
        export_onnx(vit, tmp_path / "model.onnx")
    with pytest.raises(PortableError, match=r"whose name ends in \.onnx$"):
        export_onnx(vit, tmp_path / "model")
    for wrong in (17, 24):
        with pytest.raises(PortableError, match=rf"^opset={wrong}: give 18 \(which the oldest runtimes read\) to 23$"):
            export_onnx(vit, tmp_path / "model.onnx", opset=wrong)
    with pytest.raises(ConfigError, match=r"^--opset=20 applies to --layout=onnx, not to jax$"):
        export(tmp_path, tmp_path / "folder", layout="jax", which="raw", opset=20)
    assert not any(tmp_path.iterdir())


def test_matmul_equals_the_einsum():
    sizes = dict(b=2, h=3, q=4, k=5, d=6)
    random = np.random.default_rng(0)
    for equation in ("bhqd,bhkd->bhqk", "bhqk, bhkd -> bhqd", "dbq,kdb->bqk", "qd,dk->qk"):
        operands = equation.replace(" ", "").partition("->")[0].split(",")
        left, right = (random.normal(size=[sizes[axis] for axis in axes]) for axes in operands)
        first, second = _matmul_permutations(equation)
        found = left.transpose(first) @ right.transpose(second)
        np.testing.assert_allclose(found, np.einsum(equation, left, right), atol=1e-12)
    for equation in ("bq,bq->b", "qd,kd->kq", "q,k->qk", "qd,dk,kh->qh", "...d,dk->...k"):
        with pytest.raises(PortableError, match="that is not a matrix product"):
            _matmul_permutations(equation)


# The oldest onnxruntime of docs/inference.md needs another NumPy than JAX, and so a separate environment.
OLD = os.environ.get("DEIT_JAX_OLD_ONNXRUNTIME")


@pytest.mark.long
@pytest.mark.skipif(not OLD, reason="DEIT_JAX_OLD_ONNXRUNTIME is the Python of an environment with onnxruntime 1.17")
@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "regnety_002"])
def test_oldest_onnxruntime(name, tmp_path):
    pytest.importorskip("jax2onnx")
    classifier = shaken(name, 64, **TEACHER if name.startswith("regnety") else {"depth": 2})
    export_onnx(classifier, tmp_path / "model.onnx")
    program = example("load_onnx").replace("PHOTOS", repr([str(CHINA), str(FLOWER)]))
    program += """
import json
none = session.run(["logits", "probabilities"], {"images": images[:0]})
print(json.dumps([logits.tolist(), [one.shape for one in none], onnxruntime.__version__]))
"""
    done = subprocess.run([OLD, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    logits, none, version = json.loads(done.stdout.splitlines()[-1])
    assert version.startswith("1.17.")
    wanted = np.log(classifier.probabilities([CHINA, FLOWER]))
    np.testing.assert_allclose(jax.nn.log_softmax(np.array(logits)), wanted, atol=1e-4)
    assert none == [[0, 20], [0, 20]]


def shaken(name, size, **fields):
    """A classifier of 20 classes, with weights larger than initial ones, so that differences are visible."""
    model = create_model(name, 20, size, **fields)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    variables = jax.tree.map(
        lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), variables
    )
    return Classifier(model, variables, crop=CenterCrop(size))


@pytest.mark.long
@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "regnety_002"])
def test_documented_onnx_example(name, tmp_path, monkeypatch):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    size, fields = (224, {}) if name.startswith("deit") else (64, TEACHER)
    classifier = shaken(name, size, **fields)
    model, variables = classifier.model, classifier.variables
    monkeypatch.chdir(tmp_path)
    cumsum = jnp.cumsum
    export_onnx(classifier, "model.onnx")
    assert jnp.cumsum is cumsum  # jax2onnx replaces it
    assert check_onnx("model.onnx", classifier) < 1e-5
    other = Classifier(model, jax.tree.map(lambda leaf: 1.1 * leaf, variables), crop=CenterCrop(size))
    with pytest.raises(PortableError, match=r"^model\.onnx: in onnxruntime its logits differ from the model's by"):
        check_onnx("model.onnx", other)
    found = {}
    exec(example("load_onnx").replace("PHOTOS", repr([str(CHINA), str(FLOWER)])), found)

    assert (found["preprocessing"]["jax_version"], len(found["preprocessing"]["date"])) == (
        jax.__version__,
        len("2026-11-30"),
    )
    images = np.stack([classifier.prepare(path) for path in (CHINA, FLOWER)])
    np.testing.assert_array_equal(found["images"], images)
    normalised = prepare_for_evaluation(images, classifier.mean, classifier.std)
    wanted = np.asarray(jax.jit(model.apply)(variables, normalised).logits)
    assert np.ptp(wanted) > 0.1
    np.testing.assert_allclose(found["logits"], wanted, atol=1e-4)
    np.testing.assert_allclose(found["probabilities"], jax.nn.softmax(wanted), atol=1e-4)
    [one] = found["session"].run(["logits"], {"images": images[1:]})
    np.testing.assert_allclose(one, wanted[1:], atol=1e-4)  # another batch size
    none = found["session"].run(["logits", "probabilities"], {"images": images[:0]})  # which used to kill the process
    assert [answer.shape for answer in none] == [(0, 20), (0, 20)]
    import onnx

    written = onnx.load("model.onnx")
    assert (written.opset_import[0].version, written.ir_version) == (18, 8)
    export_onnx(classifier, "newer.onnx", opset=23)
    assert onnx.load("newer.onnx").opset_import[0].version == 23
    newer = onnxruntime.InferenceSession("newer.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(newer.run(["logits"], {"images": images})[0], found["logits"], atol=1e-5)
    Path("model.onnx").write_bytes(b"not a model")
    with pytest.raises(PortableError, match=r"^model\.onnx: onnxruntime [\d.]+ cannot run it \([^\n]*$"):
        check_onnx("model.onnx", classifier)
