"""Statistics of initial weights compared with the reference, tensor by tensor: see record_initialisation in the recorder."""

import re
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.models import create_model
from deit_jax.models.vit import embedding_init

from .timm_names import INITIAL_VITS, QUANTILES, our_name


def kind_of(name):
    """All blocks of a transformer have the same initialisation."""
    return re.sub(r"^blocks\.\d+", "blocks", name)


def pooled(rows):
    """Pools size, mean, standard deviation and (approximate) quantiles of several tensors."""
    size, mean, std, *tails = np.array(rows, np.float64).T
    whole = np.average(mean, weights=size)
    return (
        size.sum(),
        whole,
        np.average(std**2 + (mean - whole) ** 2, weights=size) ** 0.5,
        *(np.average(tail, weights=size) for tail in tails),
    )


def by_kind(rows):
    kinds = defaultdict(list)
    for name, row in rows.items():
        kinds[kind_of(name)].append(row)
    return {kind: pooled(rows) for kind, rows in kinds.items()}


# Two of the twelve blocks suffice, and compile faster.
CASES = [
    *((name, {"depth": 2}, 224) for name in INITIAL_VITS),
    pytest.param("regnety_002", {}, 32, marks=pytest.mark.long),  # test_regnet.py looks at one block
]


@pytest.mark.parametrize(("name", "fields", "size"), CASES)
def test_initialisation_statistics_equal_the_reference(golden, timm_shapes, name, fields, size):
    shapes = {key: shape for key, shape in timm_shapes[name].items() if not key.endswith("num_batches_tracked")}
    theirs = by_kind(
        {
            key: (np.prod(shape), *row)
            for (key, shape), row in zip(shapes.items(), golden[f"initial/{name}"], strict=True)
        }
    )

    model = create_model(name, **fields)
    init = jax.jit(model.init)
    variables = init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    leaves = {
        tuple(part.key for part in path): np.asarray(x, np.float64)
        for path, x in jax.tree_util.tree_leaves_with_path(variables)
    }
    ours = by_kind(
        {
            key: (leaf.size, leaf.mean(), leaf.std(), *np.quantile(leaf, QUANTILES))
            for key, shape in shapes.items()
            if (leaf := leaves.pop(our_name(key, len(shape)), None)) is not None
        }
    )
    assert not leaves and ours.keys() == theirs.keys()

    for kind, (count, mean, std, *tails) in ours.items():
        their_count, their_mean, their_std, *their_tails = theirs[kind]
        if their_std == 0:
            assert std == 0 and mean == their_mean, kind
            continue
        # Five standard errors of the difference of two samples.
        error = 5 * their_std * (1 / count + 1 / their_count) ** 0.5
        assert abs(mean - their_mean) < error, kind
        assert abs(std - their_std) < error / 2**0.5, kind
        if count > 5000:  # tails distinguish normal, truncated and uniform: (p (1 - p))^.5 / density = 9.4 for a normal
            np.testing.assert_allclose(tails, their_tails, rtol=0, atol=9.4 * error, err_msg=kind)


def test_recorded_transformers_are_the_released_ones(golden, timm_shapes):
    """Checks the recording: current timm initialises the class token with 1e-6."""
    for name in INITIAL_VITS:
        keys = list(timm_shapes[name])
        for token in ("cls_token", "dist_token", "pos_embed"):
            assert golden[f"initial/{name}"][keys.index(token), 1] == pytest.approx(0.02, rel=0.2)


def test_plain_normal_has_no_outliers():
    """PyTorch's trunc_normal_ makes one weight in 2**24 exactly -2; a float32 normal stays within six deviations."""
    draws = embedding_init(jax.random.key(0), (2**21,))
    assert 4.5 * 0.02 < jnp.abs(draws).max() < 6 * 0.02


def test_regnet_initialisation_of_timm_0_3():
    """Kaiming with the fan-out of all groups, and PyTorch's default biases of the gates."""
    images = jnp.zeros((1, 32, 32, 3))
    fields = {"w0": 32, "wa": 32.0, "wm": 2.0, "depth": 3, "group_width": 8, "stem_width": 32, "num_classes": 3}
    usual, pinned = (
        {
            "/".join(part.key for part in path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(
                jax.jit(create_model("regnety_002", regnet_init=name, **fields).init)(jax.random.key(0), images)[
                    "params"
                ]
            )
        }
        for name in ("timm_0.5", "timm_0.3")
    )
    different = {name for name in usual if not np.array_equal(usual[name], pinned[name])}
    gates = {name for name in usual if "/se/" in name and name.endswith("bias")}
    grouped = {name for name in usual if name.endswith("conv2/conv/kernel")}
    assert different == gates | grouped and len(gates) == 6 and len(grouped) == 3
    for name in grouped:
        *window, inputs, outputs = usual[name].shape  # inputs of one group
        deviation = (2 / (np.prod(window) * outputs)) ** 0.5
        assert pinned[name].std() == pytest.approx(deviation, rel=0.1)
        np.testing.assert_allclose(usual[name], pinned[name] * (outputs / inputs) ** 0.5, rtol=1e-5)
    for name in gates:
        bound = usual[name.replace("bias", "kernel")].shape[-2] ** -0.5
        assert not usual[name].any() and 0.6 * bound < np.abs(pinned[name]).max() <= bound
