import jax
import numpy as np
import pytest

from .timm_names import GOLDEN, state_dict_shapes


@pytest.fixture(scope="session")
def golden():
    """Recorded outputs of timm's models: see tests/golden/record_models.py."""
    with np.load(GOLDEN / "models.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def timm_shapes():
    return state_dict_shapes()


@pytest.fixture(scope="session")
def close():
    """Asserts a relative L2 error of at most `limit`; failures show the error."""

    def check(found, expected, limit=1e-5):
        found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
        assert found.shape == expected.shape
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        print(f"relative L2 error {error:.1e}")
        assert error <= limit

    return check


@pytest.fixture(scope="session")
def filled():
    """Random variables without the symmetries (and the long compilation) of the initialisation."""

    def fill(model, images):
        rng = np.random.RandomState(0)
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)

        def values(path, leaf):
            noise = rng.normal(size=leaf.shape).astype(np.float32)
            if path[-1].key == "kernel":  # activations keep their scale
                return noise * np.float32(np.prod(leaf.shape[:-1]) ** -0.5)
            if path[-1].key in ("scale", "var"):
                return np.float32(1) + np.float32(0.1) * noise
            return np.float32(0.3) * noise

        return jax.tree_util.tree_map_with_path(values, shapes)

    return fill
