from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax import ModelOutput, register_loss
from deit_jax.augment.mixing import Mix, mix_targets, smoothed_one_hot
from deit_jax.config import ConfigError
from deit_jax.config_check import validate
from deit_jax.training.losses import (
    DistillationLoss,
    build_loss,
    cross_entropy,
    hard_distillation,
    soft_distillation,
)
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def golden():
    return np.load(Path(__file__).parents[1] / "golden" / "training.npz")


def test_cross_entropy_with_soft_targets_matches_timm(golden):
    np.testing.assert_allclose(cross_entropy(golden["logits"], golden["targets"]), golden["soft_target"], rtol=1e-6)


def test_smoothed_targets_match_timms_label_smoothing_loss(golden):
    targets = smoothed_one_hot(jnp.asarray(golden["labels"]), 10, 0.1)
    np.testing.assert_allclose(cross_entropy(golden["logits"], targets), golden["label_smoothing"], rtol=1e-6)


def test_hard_distillation_matches_the_reference(golden):
    np.testing.assert_allclose(hard_distillation(golden["logits"], golden["teacher"]), golden["hard"], rtol=1e-6)


@pytest.mark.parametrize("kl", ["released", "paper"])
@pytest.mark.parametrize("kl_mean", ["elements", "batch"])
@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_soft_distillation_matches_pytorch(golden, kl, kl_mean, tau):
    logits, teacher = jnp.asarray(golden["logits"]), jnp.asarray(golden["teacher"])
    ours = soft_distillation(logits, teacher, tau=tau, kl=kl, kl_mean=kl_mean)
    np.testing.assert_allclose(ours, golden[f"soft_{kl}_{kl_mean}_{tau:g}"], rtol=2e-6)


@pytest.mark.parametrize(("kind", "tau"), [("soft", 1.0), ("soft", 3.0), ("hard", 1.0)])
def test_the_whole_loss_matches_timms_task(golden, kind, tau):
    outputs = ModelOutput(None, jnp.asarray(golden["logits"]), jnp.asarray(golden["logits"][::-1]))
    loss, _ = DistillationLoss(kind, tau=tau, kl_mean="batch")(outputs, golden["targets"], golden["teacher"])
    np.testing.assert_allclose(loss, golden[f"timm_task_{kind}_{tau:g}"], rtol=2e-6)


def test_mixed_and_smoothed_targets_and_their_loss_match_timm(golden):
    labels = jnp.asarray(golden["labels"])
    mix = Mix(jnp.asarray([0.3]), jnp.asarray([False]), jnp.zeros((1, 4), jnp.int32))  # one group: the batch
    targets = mix_targets(smoothed_one_hot(labels, 10, 0.1), mix)
    np.testing.assert_allclose(targets, golden["mixed_targets"], rtol=1e-6)
    np.testing.assert_allclose(cross_entropy(golden["logits"], targets), golden["mixed_loss"], rtol=1e-6)


def test_labels_can_train_the_mean_of_both_heads_or_the_class_head(golden):
    logits, other = jnp.asarray(golden["logits"]), jnp.asarray(golden["logits"][::-1])

    def loss(kind):
        def of(pair):
            return DistillationLoss(kind, alpha=0.9)(ModelOutput(pair[0], *pair), golden["targets"], None)

        return jax.value_and_grad(of, has_aux=True)((logits, other))

    # The released fine-tuning: in evaluation mode the model returns the mean, and both heads get the same gradient.
    (value, metrics), gradients = loss("labels_mean")
    expected, gradient = jax.value_and_grad(cross_entropy)((logits + other) / 2, golden["targets"])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for found in gradients:
        np.testing.assert_allclose(found, gradient / 2, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(metrics["class_loss"], golden["soft_target"], rtol=1e-6)

    (value, metrics), gradients = loss("labels_class")
    np.testing.assert_allclose(value, golden["soft_target"], rtol=1e-6)
    assert np.any(gradients[0]) and not np.any(gradients[1]) and set(metrics) == {"loss", "class_loss"}


def test_the_teachers_term_applies_to_the_token_and_the_labels_to_the_class_head(golden):
    class_logits, token_logits = jnp.asarray(golden["logits"]), jnp.asarray(golden["logits"][::-1])
    outputs = ModelOutput(class_logits, class_logits, token_logits)
    loss, metrics = DistillationLoss("hard", alpha=0.25)(outputs, golden["targets"], golden["teacher"])
    expected = 0.75 * golden["soft_target"] + 0.25 * hard_distillation(token_logits, golden["teacher"])
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["class_loss"], golden["soft_target"], rtol=1e-6)
    agreement = np.mean(golden["logits"][::-1].argmax(-1) == golden["teacher"].argmax(-1))
    np.testing.assert_allclose(metrics["teacher_agreement"], agreement)


def test_without_a_token_both_terms_apply_to_the_class_head(golden):
    logits = jnp.asarray(golden["logits"])
    loss, _ = DistillationLoss("soft", alpha=0.1, tau=3.0)(
        ModelOutput(logits, logits, None), golden["targets"], golden["teacher"]
    )
    np.testing.assert_allclose(loss, 0.9 * golden["soft_target"] + 0.1 * golden["soft_released_elements_3"], rtol=1e-5)


def test_kind_none_ignores_teacher_and_token(golden):
    logits = jnp.asarray(golden["logits"])
    outputs = ModelOutput(logits, logits, jnp.full_like(logits, jnp.nan))
    loss, metrics = DistillationLoss("none")(outputs, golden["targets"], None)
    np.testing.assert_allclose(loss, golden["soft_target"], rtol=1e-6)
    assert set(metrics) == {"loss", "class_loss"}


def test_a_missing_teacher_and_unknown_kinds_raise(golden):
    logits = jnp.asarray(golden["logits"])
    outputs = ModelOutput(logits, logits, None)
    with pytest.raises(ValueError, match="needs a teacher"):
        DistillationLoss("hard")(outputs, golden["targets"], None)
    with pytest.raises(ValueError, match="'firm'"):
        DistillationLoss("firm")(outputs, golden["targets"], golden["teacher"])
    with pytest.raises(ValueError, match="kl='reverse'"):
        soft_distillation(logits, logits, tau=1.0, kl="reverse", kl_mean="batch")
    with pytest.raises(ValueError, match="kl_mean='sum'"):
        soft_distillation(logits, logits, tau=1.0, kl="released", kl_mean="sum")


def test_unlabelled_rows_teach_the_class_head_nothing():
    """Value and gradient of the labels' term equal those of the labelled rows alone; the teacher's term has all rows."""
    rng = np.random.default_rng(3)
    class_logits, token_logits, teacher = rng.normal(size=(3, 8, 5))
    targets, labelled = np.zeros((8, 5)), np.array([0, 1, 4, 5, 6, 7])
    targets[labelled] = rng.dirichlet(np.ones(5), 6)
    loss = DistillationLoss(kind="hard", alpha=0.3, labelled_share=0.75)

    def of(class_logits, token_logits):
        outputs = ModelOutput(class_logits, class_logits, token_logits)
        return loss(outputs, jnp.asarray(targets, jnp.float32), jnp.asarray(teacher, jnp.float32))

    def softmax(logits):
        return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)

    given = (jnp.asarray(logits, jnp.float32) for logits in (class_logits, token_logits))
    (value, metrics), gradients = jax.value_and_grad(of, argnums=(0, 1), has_aux=True)(*given)
    class_loss = -np.mean(np.sum(targets[labelled] * np.log(softmax(class_logits[labelled])), axis=-1))
    decided = np.eye(5)[teacher.argmax(axis=-1)]
    token_loss = -np.mean(np.sum(decided * np.log(softmax(token_logits)), axis=-1))
    np.testing.assert_allclose(metrics["class_loss"], class_loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["distillation_loss"], token_loss, rtol=1e-6)
    np.testing.assert_allclose(value, 0.7 * class_loss + 0.3 * token_loss, rtol=1e-6)
    expected = np.zeros((8, 5))
    expected[labelled] = 0.7 * (softmax(class_logits[labelled]) - targets[labelled]) / 6
    np.testing.assert_allclose(gradients[0], expected, atol=1e-7)
    assert not np.any(gradients[0][2:4])
    np.testing.assert_allclose(gradients[1], 0.3 * (softmax(token_logits) - decided) / 8, atol=1e-7)


def registered(function, **changes):
    """Builds the loss of a registered function of (outputs, targets, teacher_logits)."""
    register_loss("own", lambda scale=2.0: function, **{"needs_teacher": True, "teaches_token": True} | changes)
    return build_loss(tiny_config(distillation__kind="own"), num_classes=10)


def test_a_registered_loss_is_built_from_its_section_and_used_in_a_step(modules, golden):
    def build(scale: float = 2.0):
        def loss(outputs, targets, teacher_logits):
            term = soft_distillation(outputs.distillation_logits, teacher_logits, tau=1.0, kl="paper", kl_mean="batch")
            return scale * term, {"term": term, "rows": targets.shape[0]}

        return loss

    register_loss("own", build, needs_teacher=True, teaches_token=True)
    config = tiny_config(distillation__kind="own")
    validate(config)
    config.own.scale = 3.0
    logits = jnp.asarray(golden["logits"])
    value, metrics = build_loss(config, num_classes=10)(
        ModelOutput(logits, logits, logits), golden["targets"], golden["teacher"]
    )
    np.testing.assert_allclose(value, 3 * golden["soft_paper_batch_1"], rtol=2e-6)
    assert set(metrics) == {"loss", "term", "rows"} and metrics["loss"] is value and metrics["rows"] == len(logits)
    assert {leaf.dtype for leaf in metrics.values()} == {jnp.dtype("float32")}


def mean(outputs):
    return jnp.mean(outputs.class_logits)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda outputs, targets, teacher: mean(outputs), r"the loss must return \(loss, metrics\), .*; got float32\[\]"),
        (lambda outputs, targets, teacher: None, r"the loss must return .*; got None"),
        (lambda outputs, targets, teacher: (mean(outputs), 1), r"the loss must return .*; got \(float32\[\], a int\)"),
        (lambda outputs, targets, teacher: (outputs.class_logits, {}), r"the loss is float32\[32, 10\]; give a floating"),
        (lambda outputs, targets, teacher: (jnp.argmax(outputs.class_logits), {}), r"the loss is int32\[\]; give a floating"),
        (lambda outputs, targets, teacher: ("text", {}), "the loss is a str; give a scalar"),
        (lambda outputs, targets, teacher: (mean(outputs), {"x": targets}), r"the metric 'x' is float32\[32, 10\]; give a"),
        (lambda outputs, targets, teacher: (mean(outputs), {"x": None}), "the metric 'x' is None; give a scalar"),
        (lambda outputs, targets, teacher: (mean(outputs), {1: 1}), "1 is not a metric name; use a printable string"),
        (lambda outputs, targets, teacher: (mean(outputs), {"grad_norm": 1}), "metric name 'grad_norm' is reserved"),
        (lambda outputs, targets, teacher: outputs.logit, r"AttributeError: .* \(.*test_losses\.py, line \d+\)"),
        (lambda outputs, targets, teacher: (float(mean(outputs)), {}), r"ConcretizationTypeError: .* \(.*test_losses\.py, line"),
        (lambda outputs, targets: 0, r"TypeError: .*takes 2 positional arguments but 3 were given"),
    ],
)  # fmt: skip
def test_invalid_results_of_a_registered_loss_raise_before_compiling(modules, function, said):
    with pytest.raises(ConfigError, match=rf"^config\.distillation\.kind=own: {said}") as raised:
        registered(function)
    assert "\n" not in str(raised.value)


def test_an_error_in_build_of_a_registered_loss_is_one_line(modules):
    def build(scale: float = 2.0):
        raise ValueError("scale must be below 1")

    register_loss("own", build, needs_teacher=True, teaches_token=True)
    with pytest.raises(
        ConfigError, match=r"^config\.own \(scale=2\.0\): ValueError: scale must be below 1 \(.*, line \d+\)$"
    ):
        build_loss(tiny_config(distillation__kind="own"), num_classes=10)


def test_build_of_a_registered_loss_must_return_a_function(modules):
    with pytest.raises(
        ConfigError, match=r"^config\.distillation\.kind=own: its `build` returns a int, not a function"
    ):
        registered(3)


def test_without_a_teacher_or_a_token_a_registered_loss_gets_none(modules):
    seen = []

    def loss(outputs, targets, teacher_logits):
        seen.append((outputs.distillation_logits, teacher_logits))
        return mean(outputs), {}

    register_loss("own", lambda: loss)
    build_loss(tiny_config(distillation__kind="own", model__name="deit_tiny_patch16_224"), num_classes=10)
    assert seen == [(None, None)]
