import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.evaluation.accuracy import evaluate, make_eval_step, mean_scores, score, score_any, sum_scores
from deit_jax.models import ModelOutput
from deit_jax.parallel.in_advance import Unfinished

MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


class Lookup(nn.Module):
    """A model that predicts the red value of the first pixel."""

    @nn.compact
    def __call__(self, images):
        answer = jnp.round(images[:, 0, 0, 0] * 255).astype(jnp.int32)
        logits = jnp.eye(10)[answer] * self.param("scale", nn.initializers.ones, ())
        return ModelOutput(logits, logits, -logits)


def scaled(value):
    return {"params": {"scale": jnp.float32(value)}}


def batch(answers, labels, size):
    image = np.zeros((size, 2, 2, 3), np.uint8)
    image[: len(answers), 0, 0, 0] = answers
    padded = np.zeros(size, np.int32)
    padded[: len(labels)] = labels
    return {"image": image, "label": padded, "mask": np.arange(size) < len(labels)}


def test_padding_is_not_counted():
    batches = [batch([1, 2, 3, 4], [1, 2, 3, 0], 4), batch([0], [0], 4)]  # the padding would be correct: 0 for label 0
    scores = evaluate(make_eval_step(Lookup(), mean=MEAN, std=STD), scaled(5), batches, 5)
    assert scores["class"]["top1"] == pytest.approx(80.0)
    assert scores["distillation"]["top1"] == pytest.approx(20.0)  # all except class 4 tie, and 0 is the lowest
    right, wrong = np.log(np.exp(5) + 9) - 5, np.log(np.exp(5) + 9)
    assert scores["class"]["loss"] == pytest.approx((4 * right + wrong) / 5, rel=1e-5)
    assert set(scores) == {"class", "distillation", "fused_logits", "fused_softmax"}


def test_one_compilation_for_all_batches_and_weights():
    step = make_eval_step(Lookup(), mean=MEAN, std=STD)
    weights = {"raw": scaled(5), "ema": scaled(3)}
    totals = sum_scores(step, weights, [batch([1, 2], [1, 0], 2), batch([3, 4], [3, 4], 2), batch([0], [0], 2)])
    assert step._cache_size() == 1
    for name, value in weights.items():  # float32 sums in the batches' order
        one = [step(value, some) for some in (batch([1, 2], [1, 0], 2), batch([3, 4], [3, 4], 2), batch([0], [0], 2))]
        loss = np.float32(one[0]["class"]["loss"]) + np.float32(one[1]["class"]["loss"])
        assert totals[name]["class"]["loss"] == loss + np.float32(one[2]["class"]["loss"])
        assert totals[name]["images"] == 5


def test_the_device_is_only_a_few_batches_behind(monkeypatch):
    waited, noted = [], Unfinished.note
    monkeypatch.setattr(Unfinished, "note", lambda self, totals: waited.append(totals) or noted(self, totals))
    sum_scores(make_eval_step(Lookup(), mean=MEAN, std=STD), {"a": scaled(5)}, [batch([1], [1], 2)] * 6)
    assert [int(totals["a"]["images"]) for totals in waited] == [1, 2, 3, 4, 5, 6]


def test_missing_images_raise():
    with pytest.raises(RuntimeError, match="counted 1 images of 2"):
        evaluate(make_eval_step(Lookup(), mean=MEAN, std=STD), scaled(5), [batch([0], [0], 2)], 2)


def test_score_ranks_ties_as_argmax():
    logits = jnp.asarray(
        [[5.0, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]
    )
    labels = jnp.asarray([0, 4, 5, 0, 5])
    sums = score(logits, labels, jnp.ones(5, bool))
    assert float(sums["top1"]) == 2  # the first, and the tie won by the lowest class
    assert float(sums["top5"]) == 3


def test_non_finite_logits_count_as_wrong():
    logits = jnp.full((3, 4), jnp.nan)
    sums = score(logits, jnp.zeros(3, jnp.int32), jnp.ones(3, bool))
    assert float(sums["top1"]) == float(sums["top5"]) == 0


def test_score_any_accepts_any_label():
    logits = jnp.asarray([[5.0, 4, 3, 2, 1, 0]] * 5 + [[1.0] * 6, [float("nan")] * 6])
    right = [[0, 5], [3], [5], [], [0], [1], [0]]  # the third last: masked; then a tie, then a non-finite logit
    labels = np.zeros((7, 5), bool)  # five classes; the model has one more, which is never correct
    for row, classes in enumerate(right):
        labels[row, [c for c in classes if c < 5]] = True
    mask = jnp.asarray([True, True, True, True, False, True, True])
    sums = score_any(logits, jnp.asarray(labels), mask)
    assert set(sums) == {"top1", "top5"}
    assert float(sums["top1"]) == 1  # the first
    assert float(sums["top5"]) == 3  # and 3, and 1 of the tied


def test_several_labels_average_over_labelled_images():
    labels = np.zeros((4, 10), bool)
    labels[0, [1, 2]] = labels[1, 7] = labels[3, 0] = True  # the third has none; the fourth is padding
    image = batch([2, 2, 2, 0], [0, 0, 0], 4)
    step = make_eval_step(Lookup(), mean=MEAN, std=STD)
    totals = sum_scores(step, {"a": scaled(5)}, [image | {"label": labels}] * 2)["a"]
    scores, images = mean_scores(totals, 6)
    assert images == 4
    assert scores["class"] == {
        "top1": 50.0,
        "top5": 50.0,
    }  # after 2 the first four of the tied classes are 0, 1, 3 and 4
    with pytest.raises(RuntimeError, match="counted 6 images of 7"):
        mean_scores(totals, 7)
