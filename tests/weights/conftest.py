import jax
import numpy as np
import pytest

from .layout_golden import layout_shapes


@pytest.fixture(scope="session")
def recorded_shapes():
    """Every layout's state dicts: layout to model to tensor name to shape."""
    return layout_shapes()


@pytest.fixture(scope="session")
def equal():
    """Asserts that two trees are the same to the bit."""

    def check(one, other):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))

    return check
