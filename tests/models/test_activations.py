import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from deit_jax.models.activations import gelu, softmax


def test_gelu_is_the_exact_one_also_far_out():
    x = np.linspace(-12, 12, 481, dtype=np.float32)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(gelu(x), 0.5 * wide * (1 + erf(wide / 2**0.5)), rtol=1e-6, atol=5e-7)
    assert gelu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_softmax_keeps_its_rounded_values_alone(dtype):
    _, backward = jax.vjp(lambda scores: softmax(scores, dtype), jnp.ones((4, 8), jnp.float32))
    kept = jax.tree.leaves(backward)
    assert [(leaf.shape, leaf.dtype) for leaf in kept] == [((4, 8), dtype)]


def test_softmax_has_autodiffs_derivative():
    scores, weight = np.random.RandomState(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
    expected = jax.grad(lambda x: jnp.sum(weight * jax.nn.softmax(x, axis=-1)))(scores)
    found = jax.grad(lambda x: jnp.sum(weight * softmax(x, jnp.float32)))(scores)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    rough = jax.grad(lambda x: jnp.sum(weight * softmax(x, jnp.bfloat16).astype(jnp.float32)))(scores)
    np.testing.assert_allclose(rough, expected, atol=0.02)
