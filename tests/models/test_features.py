"""Features that models give by name: the values that flow through the network, without changing its output."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.models import create_model
from deit_jax.models.ensemble import Ensemble, joined_variables
from deit_jax.models.protocol import (
    ModelError,
    classify_with_features,
    feature_names,
    inference_form,
    initial_variables,
    train_outputs,
)
from deit_jax.models.vit_parameters import stack_blocks

VIT = dict(patch_size=4, embed_dim=8, depth=3, num_heads=2, distilled=True)
REGNET = dict(w0=8, wa=8.0, wm=2.0, depth=3, group_width=4, stem_width=4, stem_stride=1)
IMAGES = np.random.RandomState(0).normal(size=(2, 12, 12, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def vit():
    model = create_model("deit_tiny_patch16_224", 5, 12, **VIT)
    return model, jax.jit(lambda key: initial_variables(model, key, IMAGES))(jax.random.key(0))


@pytest.fixture(scope="module")
def regnet():
    model = create_model("regnety_002", 5, **REGNET)
    return model, jax.jit(lambda key: initial_variables(model, key, IMAGES))(jax.random.key(0))


def run(model, variables, names, images=IMAGES):
    return jax.device_get(jax.jit(lambda v, x: classify_with_features(model, v, x, names))(variables, images))


def captured(model, variables):
    call = jax.jit(lambda v, x: model.apply(v, x, capture_intermediates=True, mutable=["intermediates"]))
    output, state = jax.device_get(call(variables, IMAGES))
    return output, {
        name: tree["__call__"][0] for name, tree in state["intermediates"].items() if isinstance(tree, dict)
    }


def close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other)


def test_a_transformers_tokens_are_those_after_each_block(vit):
    model, _ = vit
    output, seen = captured(*vit)
    names = ("patch_1", "class_2", "distillation_2", "class_3", "final")
    assert set(names) | {"patch_3", "distillation_1"} <= set(feature_names(model)) and len(feature_names(model)) == 10
    found, features = run(*vit, names)
    assert set(features) == set(names)
    close(found, output)
    close(features["patch_1"].reshape(2, 9, 8), seen["blocks_0"][:, 2:])
    close(features["class_2"], seen["blocks_1"][:, 0])
    close(features["distillation_2"], seen["blocks_1"][:, 1])
    close(features["class_3"], seen["blocks_2"][:, 0])
    close(features["final"], seen["norm"][:, 0])
    assert features["patch_1"].shape == (2, 3, 3, 8)


def test_the_last_blocks_patch_tokens_are_computed_if_asked_for(vit):
    plain, features = run(*vit, ("patch_3", "class_3"))
    scanned = vit[0].clone(scan_blocks=True), {"params": stack_blocks(vit[1]["params"])}
    close(run(*scanned, ("patch_3", "class_3")), (plain, features))
    assert features["patch_3"].shape == (2, 3, 3, 8)


@pytest.mark.parametrize("options", [{"remat": "full"}, {"remat": "dots", "scan_blocks": True}])
def test_features_and_their_gradients_do_not_depend_on_how_blocks_are_run(vit, options):
    names = ("patch_2", "class_3")

    def gradient(model, params):
        def loss(params):
            kwargs = dict(train=True, positions=jnp.arange(2), rngs={"dropout": jax.random.key(0)}, features=names)
            output, updates = train_outputs(model, {"params": params}, jnp.asarray(IMAGES), **kwargs)
            return sum(jnp.sum(x**2) for x in (output.logits, *updates["features"].values()))

        return jax.jit(jax.grad(loss))(params)

    model, variables = vit
    expected = gradient(model, variables["params"])
    other, params = model.clone(**options), variables["params"]
    if options.get("scan_blocks"):
        params, expected = stack_blocks(params), stack_blocks(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), gradient(other, params), expected)


def test_a_regnets_features_are_its_stages_also_with_folded_batch_norm_and_as_an_ensemble(regnet):
    model, _ = regnet
    output, seen = captured(*regnet)
    names = feature_names(model)
    assert names == ("stem", "s1", "s2", "s3", "final")
    found, features = run(*regnet, names)
    close(found, output)
    close({name: features[name] for name in names[:-1]}, {name: seen[name] for name in names[:-1]})
    close(features["final"], seen["s3"].mean((1, 2)))
    folded = inference_form(*regnet)
    assert folded[0].folded
    close(run(*folded, names), (found, features))
    ensemble = Ensemble((folded[0],), (3, 1), (2.0, 2.0, 2.0), (0.5, 0.5, 0.5))
    again, inside = run(ensemble, joined_variables([folded[1]]), names, (IMAGES - 0.5) / 2)
    assert feature_names(ensemble) == names
    close(inside, features)
    close(again.logits, found.logits[:, [3, 1]])
    assert feature_names(Ensemble((model, model))) == ()


class Own(nn.Module):
    num_classes: int = 5
    wrong: str = ""
    feature_names = ("pooled", "map")

    @nn.compact
    def __call__(self, images, *, features=()):
        logits = nn.Dense(self.num_classes)(images.mean((1, 2)))
        found = {"pooled": images.mean((1, 2)), "map": images, "more": images}
        if self.wrong == "pair":
            return logits
        if self.wrong == "rank":
            found["map"] = images[0]
        if self.wrong == "missing":
            del found["pooled"]
        if self.wrong == "type":
            found["map"] = images > 0
        return (logits, found) if features else logits


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("pair", r"the model Own, called with features=.*does not return a pair"),
        ("rank", r"'map' has the shape \(12, 12, 3\): give \[B, h, w, C\] or \[B, C\]"),
        ("missing", "'pooled' is missing"),
        ("type", "'map' as bool: give a floating-point type"),
    ],
)
def test_a_registered_model_that_gives_something_else_is_reported_in_one_line(wrong, message):
    variables = initial_variables(Own(), jax.random.key(0), jnp.asarray(IMAGES))
    output, features = classify_with_features(Own(), variables, jnp.asarray(IMAGES), ("map", "pooled"))
    assert list(features) == ["map", "pooled"] and output.logits.shape == (2, 5)
    with pytest.raises(ModelError, match=message) as error:
        classify_with_features(Own(wrong=wrong), variables, jnp.asarray(IMAGES), ("map", "pooled"))
    assert "\n" not in str(error.value)
