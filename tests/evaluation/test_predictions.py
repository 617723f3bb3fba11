import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.augment.pipeline import prepare_for_evaluation
from deit_jax.evaluation.predictions import (
    confusion_matrix,
    decide,
    disagreement,
    make_decide_step,
    make_predict_step,
    predict,
    spread_indices,
)
from deit_jax.models import ModelOutput

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)


def test_predict_keeps_order_and_drops_padding(transformer, photographs):
    model, variables = transformer
    batches = [
        {"image": photographs, "label": np.array([3, 1], np.int32), "mask": np.array([True, True])},
        {"image": photographs[::-1], "label": np.array([2, 0], np.int32), "mask": np.array([True, False])},
    ]
    found = predict(make_predict_step(model, mean=MEAN, std=STD), variables, batches)
    logits = np.asarray(jax.jit(model.apply)(variables, prepare_for_evaluation(photographs, MEAN, STD)).logits)
    logits = logits[[0, 1, 1]].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    assert found.classes.shape == found.probabilities.shape == (3, 3)
    np.testing.assert_array_equal(found.classes, np.argsort(-logits, axis=-1)[:, :3])
    np.testing.assert_allclose(found.probabilities, -np.sort(-expected, axis=-1)[:, :3], rtol=1e-4)
    assert found.labels.tolist() == [3, 1, 2]
    np.testing.assert_array_equal(found.right, logits.argmax(axis=-1) == [3, 1, 2])


def test_confusion_matrix():
    found = confusion_matrix(np.array([0, 0, 2, 0]), np.array([0, 1, 2, 1]), 3)
    np.testing.assert_array_equal(found, [[1, 2, 0], [0, 0, 0], [0, 0, 1]])


def test_spread_indices():
    assert spread_indices(10, 20).tolist() == list(range(10))
    assert spread_indices(10, 3).tolist() == [0, 3, 6]
    assert spread_indices(0, 3).tolist() == []
    classes = np.repeat(np.arange(100), 50)  # sorted by class, as folders are
    assert np.bincount(classes[spread_indices(5000, 1000)]).tolist() == [10] * 100


class Lookup(nn.Module):
    """A model that predicts the first pixel: red for the class head, green for the distillation head."""

    def __call__(self, images):
        classes = jnp.round(images[:, 0, 0] * 255).astype(jnp.int32)
        first, second = jnp.eye(10)[classes[:, 0]], 3 * jnp.eye(10)[classes[:, 1]]
        return ModelOutput((first + second) / 2, first, second)


def batch(red, green, labels, size):
    image = np.zeros((size, 2, 2, 3), np.uint8)
    image[: len(red), 0, 0, 0], image[: len(red), 0, 0, 1] = red, green
    padded = np.zeros(size, np.int32)
    padded[: len(labels)] = labels
    return {"image": image, "label": padded, "mask": np.arange(size) < len(labels)}


def test_decide_keeps_order_and_drops_padding():
    batches = [batch([1, 2, 3], [1, 5, 6], [1, 2, 6], 3), batch([7], [8], [9], 3)]
    decisions, labels = decide(make_decide_step(Lookup(), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)), {}, batches)
    assert list(decisions) == ["class", "distillation", "both"]
    np.testing.assert_array_equal(labels, [1, 2, 6, 9])
    np.testing.assert_array_equal(decisions["class"], [1, 2, 3, 7])
    np.testing.assert_array_equal(decisions["distillation"], [1, 5, 6, 8])
    np.testing.assert_array_equal(decisions["both"], decisions["distillation"])  # whose logits are larger


def test_disagreement_is_the_share_of_different_decisions():
    rng = np.random.default_rng(0)
    columns = {name: rng.integers(0, 3, 50) for name in "abcd"}
    columns["e"] = columns["a"].copy()
    columns["e"][:5] = (columns["a"][:5] + 1) % 3
    matrix = disagreement(columns)
    for i, one in enumerate(columns.values()):
        for j, other in enumerate(columns.values()):
            assert matrix[i, j] == sum(int(x) != int(y) for x, y in zip(one, other, strict=True)) / 50
    assert matrix[0, 4] == 0.1
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(np.diag(matrix), 0)


@pytest.mark.parametrize("columns", [{"a": np.zeros(3), "b": np.zeros(4)}, {"a": np.zeros(0), "b": np.zeros(0)}])
def test_decisions_on_other_images_are_rejected(columns):
    with pytest.raises(ValueError, match="for the same images"):
        disagreement(columns)
