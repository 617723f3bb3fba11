from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deit_jax.config import RELEASED_NO_DECAY
from deit_jax.models import create_model
from deit_jax.training.optimizer import decayed, make_optimizer, parameter_name


@pytest.fixture(scope="module")
def golden():
    return np.load(Path(__file__).parents[1] / "golden" / "training.npz")


@pytest.mark.parametrize(
    ("name", "options"), [("adamw", {}), ("adamw_clipped", {"clip_norm": 1.0}), ("sgd", {"name": "sgd"})]
)
def test_twenty_steps_are_pytorchs(golden, name, options):
    optimizer = make_optimizer(lambda step: 0.01, weight_decay=0.05, no_decay=("free",), **options)
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


def test_the_released_rules_decay_kernels_and_the_distillation_token_only():
    model = create_model("deit_tiny_distilled_patch16_224", depth=1)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    mask = decayed(params, RELEASED_NO_DECAY)
    names = {parameter_name(path) for path, keep in jax.tree_util.tree_leaves_with_path(mask) if keep}
    assert names == {
        "dist_token",
        "patch_embed/proj/kernel",
        "blocks_0/attn/qkv/kernel",
        "blocks_0/attn/proj/kernel",
        "blocks_0/mlp/fc1/kernel",
        "blocks_0/mlp/fc2/kernel",
        "head/kernel",
        "head_dist/kernel",
    }


def test_in_a_regnet_just_the_convolutions_and_the_head_decay():
    model = create_model("regnety_002")
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    for path, keep in jax.tree_util.tree_leaves_with_path(decayed(params, RELEASED_NO_DECAY)):
        assert keep == parameter_name(path).endswith("kernel"), parameter_name(path)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="'lamb'"):
        make_optimizer(lambda step: 0.1, name="lamb")
