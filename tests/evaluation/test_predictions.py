import jax
import numpy as np

from deit_jax.augment.pipeline import prepare_for_evaluation
from deit_jax.evaluation.predictions import confusion_matrix, make_predict_step, predict, spread_indices

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)


def test_predictions_are_the_models_own_answer_in_order_without_the_padding(transformer, photographs):
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


def test_a_confusion_matrix_counts_pairs():
    found = confusion_matrix(np.array([0, 0, 2, 0]), np.array([0, 1, 2, 1]), 3)
    np.testing.assert_array_equal(found, [[1, 2, 0], [0, 0, 0], [0, 0, 1]])


def test_spread_indices_reach_every_part_of_a_sorted_source():
    assert spread_indices(10, 20).tolist() == list(range(10))
    assert spread_indices(10, 3).tolist() == [0, 3, 6]
    assert spread_indices(0, 3).tolist() == []
    classes = np.repeat(np.arange(100), 50)  # sorted by class, as folders are
    assert np.bincount(classes[spread_indices(5000, 1000)]).tolist() == [10] * 100
