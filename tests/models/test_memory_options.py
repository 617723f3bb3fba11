"""Attention implementations, rematerialisation and scanned blocks compute the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.models import create_model
from deit_jax.models.vit_parameters import stack_blocks, unstack_blocks
from deit_jax.weights import load_weights, save_weights

from .timm_names import photographs

NAME = "deit_tiny_distilled_patch16_224"
SMALL = {"num_classes": 5, "image_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}


def value_and_gradients(model, params, images):
    def loss(params):
        output = model.apply({"params": params}, images)
        return jnp.sum(jnp.square(output.class_logits)) + jnp.sum(output.distillation_logits[:, 0])

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope="module")
def plain(filled):
    """Images, parameters, and output and gradients of the model without options."""
    model, images = create_model(NAME, **SMALL), photographs(4, 32)
    params = filled(model, images)["params"]
    return images, params, value_and_gradients(model, params, images)


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(found[1]), jax.tree.leaves(expected[1]), strict=True
    ):
        size = np.linalg.norm(other)
        assert np.linalg.norm(one - other) <= 2e-5 * size + 1e-5, jax.tree_util.keystr(path)


@pytest.mark.parametrize("options", [{"attention": "dot_product"}, {"remat": "dots"}, {"remat": "full"}])
def test_options_keep_output_and_gradients(plain, options):
    images, params, expected = plain
    assert_same(value_and_gradients(create_model(NAME, **SMALL, **options), params, images), expected)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_scanned_blocks_are_equivalent(plain, remat):
    images, params, expected = plain
    model = create_model(NAME, **SMALL, scan_blocks=True, remat=remat)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    stacked = stack_blocks(params)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
    value, gradients = value_and_gradients(model, stacked, images)
    assert_same((value, unstack_blocks(gradients)), expected)


def test_stacking_is_invertible(plain):
    _, params, _ = plain
    back = unstack_blocks(stack_blocks(params))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(one, other)
    assert unstack_blocks(params).keys() == params.keys()


def test_files_do_not_depend_on_scan_blocks(plain, tmp_path):
    _, params, _ = plain
    model = create_model(NAME, **SMALL)
    scanned = model.clone(scan_blocks=True)
    one = save_weights({"params": params}, model, tmp_path / "a.safetensors")
    other = save_weights({"params": stack_blocks(params)}, scanned, tmp_path / "b.safetensors")
    assert one.read_bytes() == other.read_bytes()
    found = load_weights(one, scanned)["params"]
    np.testing.assert_array_equal(found["blocks"]["norm1"]["bias"][1], params["blocks_1"]["norm1"]["bias"])


def test_stochastic_depth_rates_of_scanned_blocks(plain):
    images, params, _ = plain
    repeated = np.repeat(images[:1], 64, axis=0)
    # Three blocks of rates 0, 0.45 and 0.9: with one block only, the first, nothing can be dropped.
    model = create_model(NAME, **SMALL, scan_blocks=True, drop_path_rate=0.9)
    apply = jax.jit(
        lambda key: model.apply({"params": stack_blocks(params)}, repeated, train=True, rngs={"dropout": key})
    )
    first, again, other = (apply(jax.random.key(seed)).class_logits for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    single = create_model(NAME, **(SMALL | {"depth": 1}), scan_blocks=True, drop_path_rate=0.9)
    kept = {name: tree for name, tree in params.items() if name not in ("blocks_1", "blocks_2")}
    output = single.apply({"params": stack_blocks(kept)}, repeated, train=True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(output.class_logits, np.repeat(output.class_logits[:1], 64, axis=0), rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("attention", "fast", "'fast' is none of auto, xla, dot_product, pallas, cudnn; the nearest is"),
        ("attention", "cuDNN", "'cuDNN' is none of auto, xla, dot_product, pallas, cudnn; the nearest is 'cudnn'$"),
        ("remat", "dot", "'dot' is none of none, dots, full; the nearest is 'dots'$"),
        ("remat", None, "None is none of none, dots, full"),
        ("fusion", "Softmax", "'Softmax' is none of logits, softmax, class; the nearest is 'softmax'$"),
        ("residual_dtype", "bfloat16", "'bfloat16' is none of compute, float32"),
        ("drop_dtype", None, "None is none of compute, float32"),
        ("dtype", "bf16", "'bf16' is not a floating-point type: give float32, bfloat16 or float16$"),
        ("dtype", int, "not a floating-point type"),
    ],
)
def test_unknown_choices_are_rejected(field, value, message):
    with pytest.raises(ValueError, match=f"^{field}=.*{message}"):
        create_model(NAME, **{field: value})
    assert create_model(NAME, dtype="bfloat16").dtype == "bfloat16"
