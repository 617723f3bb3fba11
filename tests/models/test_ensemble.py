"""Several frozen models as one, against NumPy."""

import jax
import numpy as np
import pytest

from deit_jax.models import create_model
from deit_jax.models.ensemble import Ensemble, joined_variables, renormalisation
from deit_jax.models.flops import forward_flops
from deit_jax.models.protocol import on_mesh
from deit_jax.parallel.mesh import make_mesh
from tests.tiny import STUDENT, TEACHER

CLASSES = (3, 0, 7)


@pytest.fixture(scope="module")
def members():
    """[(model, variables, apply)] of a convnet and a distilled transformer with 8 classes."""
    models = [
        create_model("regnety_002", 8, 28, **TEACHER),
        create_model("deit_tiny_distilled_patch16_224", 8, 28, **STUDENT),
    ]
    image = np.zeros((1, 28, 28, 3), np.float32)
    found = []
    for number, model in enumerate(models):
        variables = jax.jit(model.init)(jax.random.key(number), image)
        # Initial heads give nearly equal logits: scale them.
        variables["params"]["head"] = jax.tree.map(lambda leaf: 30 * leaf, variables["params"]["head"])
        found.append((model, variables, jax.jit(model.apply)))
    return found


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(4, 28, 28, 3)).astype(np.float32)


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def answer(models, variables, images, **fields):
    ensemble = Ensemble(tuple(models), **fields)
    return np.asarray(jax.jit(ensemble.apply)(joined_variables(variables), images).logits, np.float64)


def test_logits_of_two_members_are_the_log_of_the_mean_probability(members, images):
    logits = [np.asarray(apply(variables, images).logits, np.float64) for _, variables, apply in members]
    found = answer([model for model, *_ in members], [variables for _, variables, _ in members], images)
    expected = (softmax(logits[0]) + softmax(logits[1])) / 2
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-5)
    assert (softmax(logits[0]).argmax(-1) != softmax(logits[1]).argmax(-1)).any()  # the members disagree


def test_members_get_renormalised_images_and_selected_classes(members, images):
    ours, theirs = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25)), ((0.1, 0.2, 0.6), (0.5, 0.5, 0.4))
    scale, shift = renormalisation(ours, theirs)
    rgb = images * np.asarray(ours[1]) + np.asarray(ours[0])
    seen = ((rgb - np.asarray(theirs[0])) / np.asarray(theirs[1])).astype(np.float32)
    logits = [np.asarray(apply(variables, seen).logits)[:, CLASSES] for _, variables, apply in members]
    models, variables = [model for model, *_ in members], [variables for _, variables, _ in members]
    fields = {"classes": CLASSES, "scale": scale, "shift": shift}
    np.testing.assert_allclose(answer(models[:1], variables[:1], images, **fields), logits[0], rtol=1e-4, atol=1e-5)
    expected = (softmax(logits[0].astype(np.float64)) + softmax(logits[1].astype(np.float64))) / 2
    np.testing.assert_allclose(np.exp(answer(models, variables, images, **fields)), expected, rtol=1e-4)


def test_no_renormalisation_if_equal():
    assert renormalisation(((0.5,) * 3, (0.2,) * 3), ([0.5] * 3, [0.2] * 3)) is None


def test_ensemble_cannot_be_trained_and_has_the_flops_of_its_members(members, images):
    models = tuple(model for model, *_ in members)
    ensemble = Ensemble(models)
    with pytest.raises(ValueError, match="frozen"):
        ensemble.apply(joined_variables([variables for _, variables, _ in members]), images, train=True)
    assert forward_flops(ensemble, 28) == sum(forward_flops(model, 28) for model in models)
    chosen = on_mesh(ensemble, make_mesh())
    assert chosen.members[0] == on_mesh(models[0], make_mesh()) and chosen.members[1] == models[1]
    assert hash(chosen) == hash(on_mesh(ensemble, make_mesh()))
