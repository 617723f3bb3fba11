import jax
import numpy as np
import pytest

from deit_jax.evaluation.attention import attention_maps, rollout
from deit_jax.models import create_model
from deit_jax.models.inspection import attention_weights, inspect
from deit_jax.models.stacking import stack_blocks
from tests.tiny import STUDENT


@pytest.fixture(scope="module")
def images(photographs):
    return ((photographs / 255 - 0.45) / 0.25).astype(np.float32)


@pytest.fixture(scope="module")
def inside(transformer, images):
    model, variables = transformer
    return jax.jit(lambda variables, images: inspect(model, variables, images))(variables, images)


@pytest.mark.parametrize("options", [{"scan_blocks": True}, {"attention": "dot_product"}])
def test_the_inside_leads_to_the_models_own_answer(transformer, images, options):
    model, variables = transformer
    model = model.clone(**options)
    if model.scan_blocks:
        variables = {"params": stack_blocks(variables["params"])}
    run = jax.jit(lambda variables, images: (inspect(model, variables, images), model.apply(variables, images)))
    inside, output = run(variables, images)
    for token, head, logits in ((0, "head", output.class_logits), (1, "head_dist", output.distillation_logits)):
        layer = variables["params"][head]
        np.testing.assert_allclose(
            inside.normed[:, token] @ layer["kernel"] + layer["bias"], logits, atol=1e-4 * abs(logits).max()
        )
    # Of the last block too all tokens are there, of which the heads read two.
    assert [x.shape for x in inside.tokens] == [(2, 6, 16)] * 3
    assert [x.shape for x in inside.attention] == [(2, 2, 6, 6)] * 2


def test_attention_is_the_softmax_of_queries_and_keys(transformer, inside):
    """Of the first block on real photographs, by NumPy from the parameters."""
    block = transformer[1]["params"]["blocks_0"]
    x = np.asarray(inside.tokens[0], np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * block["norm1"]["scale"] + block["norm1"]["bias"]
    qkv = x @ block["attn"]["qkv"]["kernel"] + block["attn"]["qkv"]["bias"]
    for head in range(2):
        q, k = qkv[..., 8 * head : 8 * head + 8], qkv[..., 16 + 8 * head : 16 + 8 * head + 8]
        for image in range(2):
            weights = np.exp(q[image] @ k[image].T / np.sqrt(8))
            weights /= weights.sum(axis=-1, keepdims=True)
            np.testing.assert_allclose(inside.attention[0][image, head], weights, atol=1e-5)
    for weights in inside.attention:
        np.testing.assert_allclose(np.sum(weights, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(attention_weights(block, inside.tokens[0], 2), inside.attention[0], atol=1e-5)


def test_rollout_is_a_product_of_mixed_matrices():
    rng = np.random.default_rng(0)
    attention = rng.dirichlet(np.ones(5), (3, 2, 4, 5)).astype(np.float32)  # 3 blocks, 2 images, 4 heads
    found = rollout(list(attention))
    for image in range(2):
        expected = np.eye(5)
        for block in range(3):
            mixed = np.zeros((5, 5))
            for head in range(4):
                mixed += attention[block, image, head] / 4
            mixed = 0.5 * mixed + 0.5 * np.eye(5)
            expected = (mixed / mixed.sum(axis=1, keepdims=True)) @ expected
        np.testing.assert_allclose(found[image], expected, atol=1e-6)
    np.testing.assert_allclose(np.sum(found, axis=-1), 1, atol=1e-5)


def test_rollout_of_blocks_that_only_look_at_themselves_is_the_identity():
    alone = np.broadcast_to(np.eye(4, dtype=np.float32), (1, 3, 4, 4))
    np.testing.assert_allclose(rollout([alone] * 6)[0], np.eye(4))


def test_maps_are_the_rows_of_the_prefix_tokens(transformer, images, inside):
    model, variables = transformer
    found = attention_maps(model, variables, images)
    assert found.maps.shape == (2, 2, 2, 2, 2, 2) and found.rollout.shape == (2, 2, 2, 2)
    for block in range(2):
        for token in range(2):
            rows = np.asarray(inside.attention[block])[:, :, token, 2:].reshape(2, 2, 2, 2)
            np.testing.assert_allclose(found.maps[:, block, :, token], rows, atol=1e-6)
    whole = np.asarray(rollout(inside.attention))
    np.testing.assert_allclose(found.rollout[:, 1], whole[:, 1, 2:].reshape(2, 2, 2), atol=1e-6)


def test_a_plain_transformer_has_one_row_and_a_convnet_none(transformer, images):
    params = dict(transformer[1]["params"])
    del params["dist_token"], params["head_dist"]
    params["pos_embed"] = params["pos_embed"][:, 1:]
    plain = create_model("deit_tiny_patch16_224", 10, 28, **STUDENT)
    assert attention_maps(plain, {"params": params}, images).maps.shape == (2, 2, 2, 1, 2, 2)
    with pytest.raises(ValueError, match="RegNet has no tokens"):
        inspect(create_model("regnety_002"), {}, images)
