import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.models.layer_norm import LayerNorm, normalize


def test_values_and_derivatives_are_flaxs():
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(3, 2, (2, 5, 16)), jnp.float32) for _ in range(2))
    flax = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False)
    variables = {"params": {name: jnp.asarray(rng.normal(size=16), jnp.float32) for name in ("scale", "bias")}}

    def value_of(module):
        return jax.jit(jax.value_and_grad(lambda v, x: jnp.sum(weight * module.apply(v, x)), argnums=(0, 1)))

    for ours, theirs in zip(
        jax.tree.leaves(value_of(LayerNorm())(variables, x)), jax.tree.leaves(value_of(flax)(variables, x)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_large_mean_costs_no_digits():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 64)), jnp.float32)
    ones, zeros = jnp.ones(64), jnp.zeros(64)
    np.testing.assert_allclose(normalize(x + 1000, ones, zeros), normalize(x, ones, zeros), atol=1e-3)


def test_bfloat16_in_and_out_with_float32_statistics():
    x = jnp.asarray(np.random.default_rng(0).normal(100, 1, (4, 256)), jnp.bfloat16)
    module = LayerNorm(dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), x)
    y = module.apply(variables, x)
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, atol=0.02)
    gradient = jax.grad(lambda x: jnp.sum(module.apply(variables, x).astype(jnp.float32) ** 3))(x)
    assert gradient.dtype == jnp.bfloat16 and bool(jnp.all(jnp.isfinite(gradient)))
