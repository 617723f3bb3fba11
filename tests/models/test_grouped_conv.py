import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.models.grouped_conv import GroupedConv, block_diagonal
from deit_jax.models.regnet import conv_init


@pytest.fixture(scope="module")
def images():
    return {
        channels: np.random.RandomState(channels).normal(size=(2, 7, 9, channels)).astype(np.float32)
        for channels in (24, 48)
    }


# Groups and widths that pack evenly, by a larger divisor, and only all together; odd sides.
@pytest.mark.parametrize("implementation", ["native", "packed", "auto"])
@pytest.mark.parametrize(("channels", "groups", "stride"), [(24, 1, 2), (48, 6, 1), (48, 3, 2), (24, 24, 2)])
def test_every_implementation_is_the_grouped_convolution_of_linen(
    close, images, channels, groups, stride, implementation
):
    x = images[channels]
    features = 2 * channels
    kernel = np.random.RandomState(0).normal(size=(3, 3, channels // groups, features)).astype(np.float32)
    make = {"kernel_init": conv_init(groups)}
    ours = GroupedConv(features, 3, stride, groups, implementation=implementation, **make)
    padding = ((1, 1), (1, 1))
    linen = nn.Conv(features, (3, 3), stride, padding, feature_group_count=groups, use_bias=False, **make)

    def value_and_gradients(module, kernel, x):
        outputs, pull = jax.vjp(lambda kernel, x: module.apply({"params": {"kernel": kernel}}, x), kernel, x)
        return outputs, pull(jnp.sin(jnp.arange(outputs.size, dtype=jnp.float32)).reshape(outputs.shape))

    found, expected = (jax.jit(functools.partial(value_and_gradients, module))(kernel, x) for module in (ours, linen))
    jax.tree.map(functools.partial(close, limit=1e-6), found, expected)


def test_the_kernel_is_that_of_linen():
    ours = GroupedConv(48, 3, 1, 6, kernel_init=nn.initializers.ones)
    variables = jax.eval_shape(ours.init, jax.random.key(0), jnp.zeros((1, 5, 5, 24)))
    assert jax.tree.map(jnp.shape, variables) == {"params": {"kernel": (3, 3, 4, 48)}}


def test_block_diagonal_kernel():
    kernel = jnp.arange(1.0, 5.0).reshape(1, 1, 1, 4)  # two groups of one channel, two features each
    np.testing.assert_array_equal(block_diagonal(kernel, 2)[0, 0], [[1, 2, 0, 0], [0, 0, 3, 4]])


def test_bfloat16_computes_in_bfloat16(close, images):
    x = images[48]
    for implementation in ("native", "packed"):
        module = GroupedConv(48, 3, 1, 6, kernel_init=conv_init(6), implementation=implementation, dtype=jnp.bfloat16)
        kernel = np.random.RandomState(0).normal(size=(3, 3, 8, 48)).astype(np.float32)
        found = module.apply({"params": {"kernel": kernel}}, x)
        assert found.dtype == jnp.bfloat16
        close(found, module.clone(dtype=jnp.float32).apply({"params": {"kernel": kernel}}, x), 0.02)
