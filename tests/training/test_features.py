"""The feature losses, their projections, and runs with them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.config_features import FEATURE_LOSSES, Pair
from deit_jax.training.features import FeatureMatching, cosine
from tests.training.feature_reference import CASES, DIFFERENTIATED, LOSSES, given, reference
from tests.training.trajectory import in_float64

GOLDEN = Path(__file__).parents[1] / "golden" / "features.npz"


EVERY = [(case, loss) for case in CASES for loss in LOSSES]


def ours(dtype, cases=EVERY):
    """The losses and gradients of the cases as in `reference`, in one program: by (case, loss), then by name."""

    def one(case, loss):
        student, teacher = CASES[case]
        pair = Pair("patch_1", "s1")
        matching = FeatureMatching((pair,), ((student[-1], teacher[-1]),), {loss: 1.0}, True, 0)
        arrays = {name: jnp.asarray(array, dtype) for name, array in given(case).items()}

        def value(student, kernel, bias):
            layer = {"patch_1-s1": {"kernel": kernel, "bias": bias}}
            return matching(layer, {"patch_1": student}, {"s1": arrays["teacher"]})[0]

        found, grads = jax.value_and_grad(value, argnums=(0, 1, 2))(*(arrays[name] for name in DIFFERENTIATED))
        return {"loss": found, **dict(zip(DIFFERENTIATED, grads, strict=True))}

    return jax.jit(lambda: {each: one(*each) for each in cases})()


@pytest.fixture(scope="module")
def in_double():
    with in_float64():
        return jax.device_get(ours(np.float64))


def assert_equal(found, expected):
    for name, value in expected.items():
        assert found[name].dtype == np.float64
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-13, err_msg=name)


@pytest.mark.parametrize(("case", "loss"), EVERY)
def test_a_loss_and_its_gradients_equal_pytorchs_in_float64(in_double, case, loss):
    with np.load(GOLDEN) as golden:
        assert_equal(
            in_double[case, loss], {name: golden[f"{case}/{loss}/{name}"] for name in ("loss", *DIFFERENTIATED)}
        )


def test_the_recorded_values_are_those_of_the_installed_pytorch(in_double):
    pytest.importorskip("torch")
    assert LOSSES == FEATURE_LOSSES
    for case, loss in EVERY:
        assert_equal(in_double[case, loss], reference(case, loss))


def test_a_feature_in_bfloat16_gives_a_loss_in_float32():
    cases = [("twice_as_large", loss) for loss in LOSSES]
    exact, rounded = ours(np.float32, cases), ours(jnp.bfloat16, cases)
    for each in cases:
        assert rounded[each]["loss"].dtype == np.float32 and rounded[each]["student"].dtype == jnp.bfloat16
        np.testing.assert_allclose(rounded[each]["loss"], exact[each]["loss"], rtol=0.02)


def test_a_teacher_that_is_0_everywhere_gives_finite_gradients():
    zeros = jnp.zeros((3, 4))
    value, grad = jax.value_and_grad(cosine)(jnp.ones((3, 4)), zeros)
    assert value == 1 and np.isfinite(grad).all()
    assert np.isfinite(jax.grad(cosine)(zeros, jnp.ones((3, 4)))).all()


def test_the_loss_is_the_weighted_sum_of_means_over_the_pairs():
    pairs = (Pair("patch_1", "s1"), Pair("patch_1", "s2"), Pair("class_2", "final"))
    matching = FeatureMatching(pairs, ((4, 3), (4, 5), (4, 6)), {"mse": 2.0, "cosine": 0.5}, True, 0)
    projections = matching.initial(3)
    rng = np.random.RandomState(0)
    student = {"patch_1": rng.normal(size=(2, 3, 3, 4)), "class_2": rng.normal(size=(2, 4))}
    teacher = {
        name: rng.normal(size=shape) for name, shape in (("s1", (2, 3, 3, 3)), ("s2", (2, 2, 2, 5)), ("final", (2, 6)))
    }
    student, teacher = jax.tree.map(jnp.float32, (student, teacher))
    loss, metrics = matching(projections, student, teacher)
    alone = [
        FeatureMatching((pair,), (widths,), matching.weights, True, 0)(projections, student, teacher)[1]
        for pair, widths in zip(pairs, matching.widths, strict=True)
    ]
    for name, value in metrics.items():
        np.testing.assert_allclose(value, np.mean([each[name] for each in alone]), rtol=1e-6)
    np.testing.assert_allclose(loss, 2 * metrics["feature_mse"] + 0.5 * metrics["feature_cosine"], rtol=1e-6)
    assert matching.of_student == ("patch_1", "class_2") and matching.num_parameters == 5 * (3 + 5 + 6)


def test_projections_are_drawn_from_the_seed_apart_from_each_other():
    pairs = (Pair("patch_1", "s1"), Pair("patch_2", "s1"))
    matching = FeatureMatching(pairs, ((64, 8), (64, 8)), {"mse": 1.0}, True, 0)
    first, again, other = (matching.initial(seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernels = [tree[name]["kernel"] for tree in (first, other) for name in ("patch_1-s1", "patch_2-s1")]
    assert len({kernel.tobytes() for kernel in map(np.asarray, kernels)}) == 4
    for kernel in kernels:  # uniform within 1 / 8
        assert 0.12 < np.abs(kernel).max() <= 0.125 and abs(float(kernel.mean())) < 0.02
