import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.evaluation.heads import answer_of, head_names, heads, outputs_of, own_head
from deit_jax.models import ModelOutput, create_model
from deit_jax.models.protocol import FUSIONS
from tests.tiny import STUDENT, TEACHER

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def test_both_fusions_are_returned():
    # The class head predicts 0, the distillation head almost as strongly 1, so that the two fusions differ.
    output = ModelOutput(None, jnp.asarray([[0.0, 6.0, 4.0]]), jnp.asarray([[0.0, -9.0, 1.0]]))
    by_head = heads(output)
    assert int(by_head["fused_logits"].argmax()) == 2
    assert int(by_head["fused_softmax"].argmax()) == 1
    np.testing.assert_allclose(jnp.exp(by_head["fused_softmax"]).sum(), 1.0, rtol=1e-6)


def test_answer_of_selects_fusion_or_only_head():
    distilled = {"class": {"top1": 1.0}, "fused_logits": {"top1": 2.0}, "fused_softmax": {"top1": 3.0}}
    assert answer_of(distilled, "logits")["top1"] == 2.0
    assert answer_of(distilled, "softmax")["top1"] == 3.0
    assert answer_of({"class": {"top1": 1.0}}, "logits")["top1"] == 1.0


def test_answer_of_class_fusion():
    names = ("distillation", "fused_logits", "class", "fused_softmax")
    assert answer_of({name: {"top1": float(i)} for i, name in enumerate(names)}, "class")["top1"] == 2.0


@pytest.mark.parametrize("fusion", FUSIONS)
def test_own_head_equals_logits(fusion):
    model = create_model("deit_tiny_distilled_patch16_224", 10, 28, **STUDENT, fusion=fusion)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 28, 28, 3), np.float32))
    output = jax.jit(outputs_of(model, MEAN, STD))(variables, PIXELS)
    by_head = heads(output)
    assert tuple(by_head) == head_names(model)
    np.testing.assert_array_equal(by_head[own_head(model)], output.logits)
    assert answer_of(by_head, fusion) is by_head[own_head(model)]
    normalised = (PIXELS / 255 - np.array(MEAN)) / np.array(STD)
    expected = jax.jit(model.apply)(variables, normalised.astype(np.float32))
    np.testing.assert_allclose(by_head["distillation"], expected.distillation_logits, atol=1e-5)


def test_own_head_of_a_convnet():
    model = create_model("regnety_002", 10, 28, **TEACHER)
    assert (own_head(model), head_names(model)) == ("class", ("class",))
    logits = jnp.ones((2, 10))
    assert list(heads(ModelOutput(logits, logits, None))) == ["class"]
