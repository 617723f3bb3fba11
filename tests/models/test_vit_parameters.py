import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.models.vit_parameters import resize_position_embedding

from .timm_names import timm_tensor


@pytest.fixture(scope="module")
def patches():
    """A 14x14 grid of white noise; smooth embeddings would hide differences between kernels."""
    return timm_tensor("pos_embed", (1, 14 * 14, 3))


@pytest.fixture(scope="module")
def prefix():
    return timm_tensor("prefix.pos_embed", (1, 2, 3))


@pytest.mark.parametrize(
    ("method", "grid"), [("bicubic", (24, 24)), ("bicubic", (10, 10)), ("bicubic", (9, 20)), ("bilinear", (24, 24))]
)
def test_resizing_equals_pytorch(golden, close, patches, prefix, method, grid):
    embedding = jnp.concatenate([prefix, patches], axis=1)
    resized = resize_position_embedding(embedding, grid, num_prefix_tokens=2, method=method)
    assert resized.dtype == jnp.float32
    np.testing.assert_array_equal(resized[:, :2], prefix)
    expected = golden[f"pos_embed/{method}_{grid[0]}x{grid[1]}"]
    close(resized[:, 2:], expected, 1e-6)
    np.testing.assert_allclose(resized[:, 2:], expected, rtol=0, atol=2e-6)


def test_jax_bicubic_is_a_different_kernel(golden, patches):
    # JAX's "bicubic" has a = -0.5, PyTorch's a = -0.75.
    other = jax.image.resize(patches.reshape(14, 14, 3), (24, 24, 3), "bicubic", antialias=False).reshape(1, -1, 3)
    assert np.abs(other - golden["pos_embed/bicubic_24x24"]).max() > 0.05


@pytest.mark.parametrize("num_prefix_tokens", [0, 1, 2])
@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
def test_equal_size_is_an_exact_identity(patches, num_prefix_tokens, method):
    embedding = jnp.concatenate([jnp.ones((1, num_prefix_tokens, 3)), patches], axis=1)
    resized = resize_position_embedding(embedding, (14, 14), num_prefix_tokens=num_prefix_tokens, method=method)
    np.testing.assert_array_equal(resized, embedding)


def test_constant_grid_stays_constant():
    for grid in ((24, 24), (5, 9)):
        resized = resize_position_embedding(jnp.full((1, 197, 2), 0.7), grid, num_prefix_tokens=1)
        np.testing.assert_allclose(resized, 0.7, rtol=1e-6)


def test_non_square_grid_is_rejected():
    # A plain checkpoint loaded as distilled: 197 tokens, two of them prefix.
    with pytest.raises(ValueError, match=r"197 tokens.*2 prefix"):
        resize_position_embedding(jnp.zeros((1, 197, 3)), (24, 24), num_prefix_tokens=2)


def test_unknown_method_is_rejected():
    with pytest.raises(ValueError, match=r"'nearest'.*bicubic, bilinear"):
        resize_position_embedding(jnp.zeros((1, 197, 3)), (24, 24), num_prefix_tokens=1, method="nearest")
