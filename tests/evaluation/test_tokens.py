import jax
import numpy as np
import pytest

from deit_jax.evaluation.tokens import (
    at_resolution,
    attention_maps,
    attention_weights,
    inspect,
    position_norms,
    rollout,
    token_cosines,
)
from deit_jax.models import create_model
from deit_jax.models.vit_parameters import stack_blocks
from tests.tiny import STUDENT

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def cosine(a, b):
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


def test_cosines_are_means_over_unmasked_images(transformer, photographs):
    model, variables = transformer
    noise = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3)).astype(np.uint8)
    batches = [
        {"image": photographs, "mask": np.array([True, True])},
        {"image": noise, "mask": np.array([True, False])},  # the second is padding
    ]
    found = token_cosines(model, variables, batches, mean=MEAN, std=STD)
    images = np.concatenate([photographs, noise[:1]])
    inside = inspect(model, variables, ((images / 255 - MEAN) / STD).astype(np.float32))
    expected = [
        np.mean([cosine(image[0], image[1]) for image in np.asarray(tokens)])
        for tokens in (*inside.tokens, inside.normed)
    ]
    assert found["images"] == 3
    values = [found["with_position"], *found["after_block"], found["after_norm"]]
    np.testing.assert_allclose(values, expected, atol=1e-5)
    params = variables["params"]
    assert found["learned"] == pytest.approx(cosine(params["cls_token"][0, 0], params["dist_token"][0, 0]), abs=1e-6)
    # Before the first block the two tokens do not depend on the image.
    tokens = [params[name][0, 0] + params["pos_embed"][0, i] for i, name in enumerate(("cls_token", "dist_token"))]
    assert found["with_position"] == pytest.approx(cosine(*tokens), abs=1e-6)
    assert len(set(np.round(values, 4))) == len(values) == model.depth + 2


def test_cosines_need_a_distillation_token():
    for name in ("deit_tiny_patch16_224", "regnety_002"):
        with pytest.raises(ValueError, match="no distillation token"):
            token_cosines(create_model(name), {}, [], mean=MEAN, std=STD)


def test_position_norms_of_patches(transformer):
    model, variables = transformer
    norms = position_norms(model, variables)
    embedding = variables["params"]["pos_embed"][0]
    assert norms.shape == (2, 2)
    assert norms[1, 0] == pytest.approx(np.sqrt(np.sum(embedding[2 + 2] ** 2)), rel=1e-6)


def test_bilinear_reduces_norms_more_than_bicubic(transformer):
    model, _ = transformer
    model = model.clone(image_size=14 * 14)
    embedding = np.random.default_rng(0).normal(size=(1, 2 + 14 * 14, 16)).astype(np.float32)
    variables = {"params": {"pos_embed": embedding, "cls_token": 1.0}}
    means = {}
    for method in ("bicubic", "bilinear"):
        other, resized = at_resolution(model, variables, 24 * 14, method=method)
        assert other.image_size == 336 and resized["params"]["cls_token"] == 1.0
        assert resized["params"]["pos_embed"].shape == (1, 2 + 24 * 24, 16)
        np.testing.assert_array_equal(resized["params"]["pos_embed"][:, :2], embedding[:, :2])
        means[method] = position_norms(other, resized).mean()
    assert means["bilinear"] < means["bicubic"] < position_norms(model, variables).mean()
    # As in PyTorch, half-pixel centres: the second of 24 points lies 3/8 of the way from the first of 14 to the second.
    corner, place = embedding[0, 2:].reshape(14, 14, 16)[0, :2], 1.5 * 14 / 24 - 0.5
    np.testing.assert_allclose(
        np.asarray(resized["params"]["pos_embed"])[0, 2 + 1], (1 - place) * corner[0] + place * corner[1], atol=1e-5
    )


def test_size_must_be_a_multiple_of_the_patch(transformer):
    with pytest.raises(ValueError, match="not a multiple of patch_size=14"):
        at_resolution(*transformer, 30, method="bicubic")


@pytest.fixture(scope="module")
def images(photographs):
    return ((photographs / 255 - 0.45) / 0.25).astype(np.float32)


@pytest.fixture(scope="module")
def inside(transformer, images):
    model, variables = transformer
    return jax.jit(lambda variables, images: inspect(model, variables, images))(variables, images)


@pytest.mark.parametrize("options", [{"scan_blocks": True}, {"attention": "dot_product"}])
def test_inspected_tokens_give_the_logits(transformer, images, options):
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
    # The last block has all tokens too; the heads read two.
    assert [x.shape for x in inside.tokens] == [(2, 6, 16)] * 3
    assert [x.shape for x in inside.attention] == [(2, 2, 6, 6)] * 2


def test_attention_equals_numpy(transformer, inside):
    """Attention of the first block on photographs, computed with NumPy from the parameters."""
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


def test_rollout_equals_numpy():
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


def test_rollout_of_identity_attention_is_the_identity():
    alone = np.broadcast_to(np.eye(4, dtype=np.float32), (1, 3, 4, 4))
    np.testing.assert_allclose(rollout([alone] * 6)[0], np.eye(4))


def test_maps_are_rows_of_the_prefix_tokens(transformer, images, inside):
    model, variables = transformer
    found = attention_maps(model, variables, images)
    assert found.maps.shape == (2, 2, 2, 2, 2, 2) and found.rollout.shape == (2, 2, 2, 2)
    for block in range(2):
        for token in range(2):
            rows = np.asarray(inside.attention[block])[:, :, token, 2:].reshape(2, 2, 2, 2)
            np.testing.assert_allclose(found.maps[:, block, :, token], rows, atol=1e-6)
    whole = np.asarray(rollout(inside.attention))
    np.testing.assert_allclose(found.rollout[:, 1], whole[:, 1, 2:].reshape(2, 2, 2), atol=1e-6)


def test_maps_of_plain_transformers_and_convnets(transformer, images):
    params = dict(transformer[1]["params"])
    del params["dist_token"], params["head_dist"]
    params["pos_embed"] = params["pos_embed"][:, 1:]
    plain = create_model("deit_tiny_patch16_224", 10, 28, **STUDENT)
    assert attention_maps(plain, {"params": params}, images).maps.shape == (2, 2, 2, 1, 2, 2)
    with pytest.raises(ValueError, match="RegNet has no tokens"):
        inspect(create_model("regnety_002"), {}, images)
