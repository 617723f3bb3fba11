import numpy as np
import pytest

from deit_jax.evaluation.tokens import at_resolution, position_norms, token_cosines
from deit_jax.models import create_model
from deit_jax.models.inspection import inspect

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def cosine(a, b):
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


def test_cosines_are_means_over_the_images_that_count(transformer, photographs):
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
    # Before the first block nothing of the image has reached the two tokens.
    tokens = [params[name][0, 0] + params["pos_embed"][0, i] for i, name in enumerate(("cls_token", "dist_token"))]
    assert found["with_position"] == pytest.approx(cosine(*tokens), abs=1e-6)
    assert len(set(np.round(values, 4))) == len(values) == model.depth + 2


def test_a_model_without_a_second_token_has_no_cosine():
    for name in ("deit_tiny_patch16_224", "regnety_002"):
        with pytest.raises(ValueError, match="no distillation token"):
            token_cosines(create_model(name), {}, [], mean=MEAN, std=STD)


def test_norms_are_those_of_the_patches_alone(transformer):
    model, variables = transformer
    norms = position_norms(model, variables)
    embedding = variables["params"]["pos_embed"][0]
    assert norms.shape == (2, 2)
    assert norms[1, 0] == pytest.approx(np.sqrt(np.sum(embedding[2 + 2] ** 2)), rel=1e-6)


def test_interpolation_shrinks_norms_and_bilinear_shrinks_them_more(transformer):
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


def test_another_size_must_be_a_multiple_of_the_patch(transformer):
    with pytest.raises(ValueError, match="not a multiple of patch_size=14"):
        at_resolution(*transformer, 30, method="bicubic")
