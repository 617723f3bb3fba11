import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.models.output import ModelOutput, fuse


@pytest.fixture(scope="module")
def heads():
    rng = np.random.default_rng(0)
    return rng.normal(0, 3, (6, 11)), rng.normal(0, 3, (6, 11))


def softmax(x):
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def test_fusion_of_logits_is_their_mean(heads):
    class_logits, distillation_logits = heads
    np.testing.assert_allclose(
        fuse(*map(jnp.float32, heads), "logits"), (class_logits + distillation_logits) / 2, rtol=1e-6
    )


def test_fusion_of_softmax_is_the_logarithm_of_the_mean_probability(heads):
    mean = (softmax(heads[0]) + softmax(heads[1])) / 2
    fused = fuse(*map(jnp.float32, heads), "softmax")
    np.testing.assert_allclose(np.exp(fused), mean, rtol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(fused), mean, rtol=1e-5)


def test_the_two_fusions_can_disagree():
    # The class head is sure of 0; the distillation head is surer still that it is not 0, and undecided between 1 and 2.
    class_logits, distillation_logits = jnp.array([[8.0, 0.0, 0.0]]), jnp.array([[-20.0, 0.0, 0.0]])
    assert fuse(class_logits, distillation_logits, "softmax").argmax() == 0
    assert fuse(class_logits, distillation_logits, "logits").argmax() == 1


def test_softmax_fusion_survives_extreme_logits():
    extreme = jnp.array([[1e4, -1e4, 0.0]])
    fused = fuse(extreme, extreme, "softmax")
    assert jnp.all(jnp.isfinite(fused))
    assert jnp.all(jnp.isfinite(jax.grad(lambda x: fuse(x, -x, "softmax").sum())(extreme)))


def test_the_class_head_can_answer_alone(heads):
    np.testing.assert_array_equal(fuse(*map(jnp.float32, heads), "class"), jnp.float32(heads[0]))


def test_unknown_fusion_is_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match=r"'sum'.*logits, softmax"):
        fuse(jnp.zeros((1, 2)), jnp.zeros((1, 2)), "sum")


def test_output_is_a_pytree_of_its_arrays():
    plain = ModelOutput(jnp.zeros((2, 3)), jnp.zeros((2, 3)), None)
    assert len(jax.tree.leaves(plain)) == 2
    assert isinstance(jax.jit(lambda output: output)(plain), ModelOutput)
