"""What is kept of logits decides as they do, to the last digit, and gives a loss back what it learned from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.answers.kinds import DECISIONS, LOGITS, AnswerKind, check_kind, recorded_kind
from deit_jax.config import ConfigError
from deit_jax.training.losses import decisions, hard_distillation, soft_distillation
from tests.tiny import tiny_config

K = 12
KINDS = [AnswerKind(DECISIONS, K), AnswerKind(LOGITS, K), AnswerKind(LOGITS, K, 3, 2.0), AnswerKind(LOGITS, K, 1, 1.0)]


def some_logits(rows=64, classes=K, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, classes)).astype(np.float32) * 3


def near_ties():
    """Rows whose largest logits are equal, or a unit in the last place apart, at places that are drawn."""
    logits, rng = some_logits(200), np.random.default_rng(1)
    for row in logits:
        one, other = rng.choice(K, 2, replace=False)
        top = np.float32(rng.uniform(5, 9))
        row[one], row[other] = top, top
        if rng.random() < 0.6:
            row[other] = np.nextafter(top, np.float32(rng.choice([0, 10])))
    logits[0] = 1.5  # all of them
    logits[1], logits[1, 7] = 1.5, np.nextafter(np.float32(1.5), np.float32(2))
    return logits


def on_disk(kind, answers):
    """As a file has them."""
    return {name: np.asarray(answers[name], dtype) for name, (dtype, _) in kind.arrays.items()}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_decides_as_the_logits_do_at_ties_and_next_to_them(kind):
    logits = near_ties()
    expected = np.argmax(logits, axis=-1)
    assert len(set(expected)) == K
    found = kind.restored(on_disk(kind, jax.jit(kind.of_logits)(logits)), decisions=True)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)
    student = some_logits(200, seed=2)
    np.testing.assert_array_equal(hard_distillation(student, found), hard_distillation(student, jnp.asarray(logits)))
    np.testing.assert_array_equal(decisions(found), decisions(jnp.asarray(logits)))


@pytest.mark.parametrize("kl", ["released", "paper"])
def test_all_logits_and_all_but_one_give_the_live_soft_loss(kl):
    teacher, student = some_logits(), some_logits(seed=3)
    options = {"tau": 3.0, "kl": kl, "kl_mean": "batch"}
    live = soft_distillation(student, teacher, **options)
    for kind, bound in ((AnswerKind(LOGITS, K), 0), (AnswerKind(LOGITS, K, K - 1, 3.0), 1e-6)):
        answers = on_disk(kind, kind.of_logits(jnp.asarray(teacher)))
        found = soft_distillation(student, kind.restored(answers), **options)
        np.testing.assert_allclose(found, live, rtol=bound, atol=0)


def test_the_rest_is_spread_evenly_with_the_sum_that_it_had():
    tau, kind = 2.5, AnswerKind(LOGITS, K, 4, 2.5)
    teacher = some_logits()
    answers = on_disk(kind, kind.of_logits(jnp.asarray(teacher)))
    restored = np.asarray(kind.restored(answers))
    order = np.argsort(-teacher, axis=-1)
    kept, rest = order[:, :4], order[:, 4:]
    np.testing.assert_array_equal(np.take_along_axis(restored, kept, 1), np.take_along_axis(teacher, kept, 1))
    others = np.take_along_axis(restored, rest, 1)
    np.testing.assert_array_equal(others, np.broadcast_to(others[:, :1], others.shape))
    sums = [np.exp(np.take_along_axis(logits, rest, 1) / tau).sum(1) for logits in (restored, teacher)]
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-5)


def test_classes_fit_into_sixteen_bits_or_are_refused():
    kind = AnswerKind(DECISIONS, 1 << 16)
    logits = jnp.zeros((1, 1 << 16)).at[0, 65_535].set(1.0)
    assert kind.restored(on_disk(kind, kind.of_logits(logits)))[0] == 65_535
    with pytest.raises(ConfigError, match="65,537 classes cannot be recorded"):
        AnswerKind(DECISIONS, (1 << 16) + 1)


def test_a_configuration_says_what_is_recorded():
    def kind(**changes):
        return recorded_kind(tiny_config(**changes), 10)

    assert kind() == AnswerKind(DECISIONS, 10)
    assert kind(teacher__record_as="logits", teacher__top_k=10) == AnswerKind(LOGITS, 10)
    assert kind(teacher__top_k=4) == AnswerKind(LOGITS, 10, 4, 1.0)
    with pytest.raises(
        ConfigError, match=r"config\.teacher\.top_k=4 is a number of logits, but .*record_as is decisions"
    ):
        kind(teacher__record_as="decisions", teacher__top_k=4)
    soft = {"distillation__kind": "soft", "distillation__tau": 3.0}
    assert kind(**soft) == AnswerKind(LOGITS, 10)
    assert kind(**soft, teacher__top_k=4) == AnswerKind(LOGITS, 10, 4, 3.0)
    assert kind(**soft, teacher__record_as="decisions") == AnswerKind(DECISIONS, 10)
    with pytest.raises(ConfigError, match="has no teacher whose answers"):
        kind(distillation__kind="labels", teacher__weights="")


def test_answers_that_do_not_suffice_for_a_loss_are_refused():
    hard, soft = tiny_config(), tiny_config(distillation__kind="soft", distillation__tau=2.0)
    for kind in KINDS:
        check_kind(kind, hard, "it")
    check_kind(KINDS[1], soft, "it")
    check_kind(KINDS[2], soft, "it")
    with pytest.raises(ConfigError, match=r"it holds decisions, config\.distillation.kind=soft needs logits"):
        check_kind(KINDS[0], soft, "it")
    with pytest.raises(ConfigError, match=r"distillation.tau: the answers have 1, this run 2"):
        check_kind(KINDS[3], soft, "it")
