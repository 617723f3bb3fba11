"""Unusable values (NaN and the like) are detected when weights are read or written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import deit_jax
from deit_jax.training.checkpoint_folder import CheckpointError
from deit_jax.training.checkpointing import Checkpoints, load_variables, load_weights_of_run
from deit_jax.training.state import TrainState
from deit_jax.weights import WeightsError, load_weights, save_weights
from deit_jax.weights.errors import unusable_values
from deit_jax.weights.loading import fit_variables

from .layout_golden import SMALL, layout_state

PLAIN = "deit_tiny_patch16_224"
REGNET = {"w0": 8, "wa": 8.0, "wm": 1.5, "depth": 5, "group_width": 4, "num_classes": 5}


@pytest.fixture(scope="module")
def regnet():
    model = deit_jax.create_model("regnety_002", **REGNET)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_unusable_values_are_counted_by_tensor():
    tensors = {
        "a": np.array([1, np.nan, np.nan], np.float32),
        "b": np.array([np.inf, -np.inf, 0, np.nan], np.float16),
        "c": np.array([1e300]),  # infinite as float32
        "d": jnp.array([jnp.nan], jnp.bfloat16),
        "e.running_var": np.array([1, -0.5, -2], np.float32),
        "f/var": np.array([-1], np.float32),
        "g.running_var": np.array([-1e-9, 0], np.float32),  # BatchNorm adds 1e-5
        "h.running_mean": np.array([-3], np.float32),
        "i": np.array(7),
        "j": np.float32(3e38),
    }
    assert unusable_values(tensors) == (
        "7 (a: 2 of 3 NaN, b: 1 of 4 NaN, b: 2 of 4 infinite, c: 1 of 1 infinite, d: 1 of 1 NaN, "
        "e.running_var: 2 of 3 negative, f/var: 1 of 1 negative)"
    )
    assert unusable_values({name: tensors[name] for name in "hij" if name in tensors}) == ""


@pytest.mark.parametrize("layout", ["hf_v4", "hf_v5", "mmpretrain"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_files_with_unusable_values_are_rejected(recorded_shapes, tmp_path, layout, value):
    tensors = layout_state(recorded_shapes[layout]["small_plain"])
    name = next(it for it in tensors if it.endswith(("key.bias", "k_proj.bias", "layers.1.attn.qkv.bias")))
    tensors[name][3] = value
    np.savez(tmp_path / "a.npz", **tensors)
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    model = deit_jax.create_model(PLAIN, **SMALL)
    for source in (tensors, {"state_dict": tensors}, tmp_path / "a.npz", tmp_path / "a.safetensors"):
        with pytest.raises(WeightsError, match=r"make every output NaN: 1 \(" + name + r": 1 of \d+ ") as error:
            load_weights(source, model)
        assert "\n" not in str(error.value)
    with pytest.raises(WeightsError, match=name):
        deit_jax.Classifier.from_weights(tmp_path / "a.npz", PLAIN, **SMALL)


def test_unused_tensors_may_be_nan(recorded_shapes, regnet):
    tensors = layout_state(recorded_shapes["hf_v4"]["small_plain"])
    tensors["classifier.bias"][0] = np.nan
    model = deit_jax.create_model(PLAIN, **SMALL)
    for heads in ("keep", "reset_if_needed"):  # it fits, so it is kept
        with pytest.raises(WeightsError, match=r"NaN: 1 \(classifier\.bias: 1 of 10 NaN\)"):
            load_weights(tensors, model, heads=heads)
    params = load_weights(tensors, model, heads="reset")["params"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    other = deit_jax.create_model(PLAIN, **SMALL | {"num_classes": 3})
    load_weights(tensors, other, heads="reset_if_needed")
    tensors["vit.embeddings.cls_token"][:] = np.inf
    with pytest.raises(WeightsError, match=r"NaN: 1 \(vit\.embeddings\.cls_token: "):
        load_weights(tensors, model, heads="reset")
    convnet, variables = regnet
    faulty = jax.tree.map(np.array, variables)
    faulty["params"]["head"]["fc"]["bias"][2] = np.nan
    assert fit_variables(faulty, convnet, "the run", heads="reset", seed=0).renewed == ("head",)
    with pytest.raises(WeightsError, match=r"the run holds values .*head.*bias: 1 of 5 NaN"):
        fit_variables(faulty, convnet, "the run", heads="keep", seed=0)


def test_batch_norm_statistics_are_checked(tmp_path, regnet):
    model, variables = regnet
    path = save_weights(variables, model, tmp_path / "a.safetensors")
    tensors = safetensors.numpy.load_file(path)
    for name, value in (("s1.b1.conv2.bn.running_var", -1.0), ("stem.bn.running_mean", np.nan)):
        faulty = tensors | {name: np.full_like(tensors[name], value)}
        with pytest.raises(WeightsError, match=f"{name}: "):
            load_weights(faulty, model)


def test_unusable_values_are_not_written(tmp_path, regnet):
    model, variables = regnet
    faulty = jax.tree.map(np.array, variables)
    faulty["batch_stats"]["stem"]["bn"]["var"][2] = np.nan
    with pytest.raises(WeightsError, match=r"stem\.bn\.running_var: 1 of 32 NaN"):
        save_weights(faulty, model, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(WeightsError, match=r"the run holds values .*stem\.bn\.running_var: 1 of 32 NaN"):
        fit_variables(faulty, model, "the run", heads="keep", seed=0)


def test_checkpoints_with_unusable_values_are_rejected(tmp_path):
    params = {"norm": {"bias": jnp.array([0.0, jnp.nan])}}
    fine = {"norm": {"bias": jnp.zeros(2)}}
    state = TrainState(
        step=jnp.int32(4), params=fine, batch_stats={}, opt_state=(), ema={"params": params, "batch_stats": {}}
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    assert load_variables(tmp_path, "raw")[1] == 4
    for load in (lambda: load_variables(tmp_path, "ema"), lambda: load_weights_of_run(tmp_path)):
        with pytest.raises(CheckpointError, match=r"step 4: the ema weights .*1 \(params/norm/bias: 1 of 2 NaN\)"):
            load()
