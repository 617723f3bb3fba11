import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.models import create_model
from deit_jax.models.protocol import inference_form

from .timm_names import photographs

SMALL = {"w0": 16, "wa": 16.0, "wm": 2.0, "depth": 3, "group_width": 8, "num_classes": 7}


@pytest.fixture(scope="module")
def original(filled):
    model = create_model("regnety_002", **SMALL)
    images = photographs(2, 48)
    variables = filled(model, images)
    # Variances are positive.
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    return model, variables, images


def test_a_folded_network_answers_the_same(original, close):
    model, variables, images = original
    folded, fewer = inference_form(model, variables)
    assert set(fewer) == {"params"}
    shapes = jax.eval_shape(folded.init, jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, fewer) == jax.tree.map(jnp.shape, shapes)
    close(jax.jit(folded.apply)(fewer, images).logits, jax.jit(model.apply)(variables, images).logits)


def test_every_statistic_counts(original):
    model, variables, _ = original
    _, before = inference_form(model, variables)
    for name in ("mean", "var"):
        changed = jax.tree_util.tree_map_with_path(
            lambda path, leaf, name=name: leaf + 0.5 if path[-1].key == name else leaf, variables["batch_stats"]
        )
        _, after = inference_form(model, variables | {"batch_stats": changed})
        bias = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before["params"]["s1"], after["params"]["s1"])
        assert bias["b1"]["conv3"]["bias"] > 0


def test_it_is_frozen(original):
    folded, fewer = inference_form(*original[:2])
    with pytest.raises(ValueError, match="is frozen: train the original"):
        folded.apply(fewer, original[2], train=True)
    assert inference_form(folded, fewer) == (folded, fewer)


def test_a_transformer_has_nothing_to_fold():
    model = create_model("deit_tiny_patch16_224")
    assert inference_form(model, {"params": {}}) == (model, {"params": {}})
