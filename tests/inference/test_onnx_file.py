import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax import Classifier, create_model
from deit_jax.augment.recipe import prepare_for_evaluation
from deit_jax.data.decoding import CenterCrop
from deit_jax.inference.onnx_file import check_onnx, export_onnx
from deit_jax.inference.portable import PortableError
from tests.inference.conftest import CHINA, FLOWER
from tests.inference.examples import example
from tests.tiny import TEACHER


def test_without_the_converter_it_says_what_it_needs(vit, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(
        PortableError,
        match=r"^layout=onnx needs jax2onnx: pip install onnx onnx-ir onnxruntime, then pip install --no-deps jax2onnx$",
    ):
        export_onnx(vit, tmp_path / "model.onnx")
    with pytest.raises(PortableError, match=r"whose name ends in \.onnx$"):
        export_onnx(vit, tmp_path / "model")
    assert not any(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "regnety_002"])
def test_the_documented_example_gets_our_answers_from_onnxruntime(name, tmp_path, monkeypatch):
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    size, fields = (224, {}) if name.startswith("deit") else (64, TEACHER)
    model = create_model(name, 20, size, **fields)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    # Fresh weights answer nearly nothing: larger ones, so that a difference would show.
    variables = jax.tree.map(
        lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), variables
    )
    classifier = Classifier(model, variables, crop=CenterCrop(size))
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

    assert (found["how"]["jax_version"], len(found["how"]["date"])) == (jax.__version__, len("2026-11-30"))
    images = np.stack([classifier.prepare(path) for path in (CHINA, FLOWER)])
    np.testing.assert_array_equal(found["images"], images)
    normalised = prepare_for_evaluation(images, classifier.mean, classifier.std)
    wanted = np.asarray(jax.jit(model.apply)(variables, normalised).logits)
    assert np.ptp(wanted) > 0.1
    np.testing.assert_allclose(found["logits"], wanted, atol=1e-4)
    np.testing.assert_allclose(found["probabilities"], jax.nn.softmax(wanted), atol=1e-4)
    [one] = found["session"].run(["logits"], {"images": images[1:]})
    np.testing.assert_allclose(one, wanted[1:], atol=1e-4)  # another batch size
