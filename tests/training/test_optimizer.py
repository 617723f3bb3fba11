import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deit_jax.config import RELEASED_NO_DECAY, default_config
from deit_jax.models import create_model, native_image_size
from deit_jax.training.optimizer import make_optimizer, parameter_name, trained
from tests.models.timm_names import our_name, state_dict_shapes

SECTION = default_config().optimizer.to_dict()


@pytest.fixture(scope="module")
def golden():
    return np.load(Path(__file__).parents[1] / "golden" / "training.npz")


@pytest.mark.parametrize(
    ("name", "options"), [("adamw", {}), ("adamw_clipped", {"clip_norm": 1.0}), ("sgd", {"name": "sgd"})]
)
def test_twenty_steps_match_pytorch(golden, name, options):
    options = SECTION | {"weight_decay": 0.05, "no_decay": ("free",), "clip_norm": None} | options
    optimizer = make_optimizer(lambda step: 0.01, **options)
    params = {"kernel": jnp.asarray(golden["start"][0]), "free": jnp.asarray(golden["start"][1])}
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update({"kernel": gradient[0], "free": gradient[1]}, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in golden["gradients"]:
        params, state = step(params, state, gradient)
    np.testing.assert_allclose(params["kernel"], golden[name][0], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(params["free"], golden[name][1], rtol=2e-5, atol=1e-6)


def recorded_groups(golden, name, rule):
    """Returns whether timm's tensor decays, by our parameter name."""
    groups = json.loads(str(golden["parameter_groups"]))[name][rule]
    ndims = {key: len(shape) for key, shape in state_dict_shapes()[name].items()}
    return {"/".join(our_name(key, ndims[key])[1:]): decays for key, decays in groups.items()}


def our_groups(name, patterns):
    model = create_model(name)
    size = native_image_size(name)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]
    matches = jax.tree_util.tree_leaves_with_path(trained(params, patterns))
    return {parameter_name(path): not undecayed for path, undecayed in matches}


MODELS = ("deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "regnety_002")


@pytest.mark.parametrize("name", MODELS)
def test_parameter_groups_match_the_released_code(golden, name):
    assert our_groups(name, RELEASED_NO_DECAY) == recorded_groups(golden, name, "released")


@pytest.mark.parametrize("name", MODELS)
def test_an_additional_pattern_gives_the_groups_of_current_timm(golden, name):
    expected = recorded_groups(golden, name, "current")
    assert our_groups(name, (*RELEASED_NO_DECAY, "^dist_token$")) == expected
    assert (our_groups(name, RELEASED_NO_DECAY) == expected) == ("distilled" not in name)


def test_the_released_rules_decay_kernels_and_the_distillation_token_only():
    groups = our_groups("deit_tiny_distilled_patch16_224", RELEASED_NO_DECAY)
    assert {name for name, keep in groups.items() if keep and not name.endswith("/kernel")} == {"dist_token"}
    assert all(keep for name, keep in groups.items() if name.endswith("/kernel"))


def test_an_unknown_optimizer_raises():
    with pytest.raises(ValueError, match="'lamb'"):
        make_optimizer(lambda step: 0.1, clip_norm=None, **SECTION | {"name": "lamb"})
