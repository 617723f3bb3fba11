"""Initial weights: adapted as in the released code, which refused less."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from deit_jax.config import ConfigError
from deit_jax.models.vit_parameters import resize_position_embedding
from deit_jax.modes.initial import load_initial
from deit_jax.modes.train import train
from deit_jax.training.checkpointing import load_state, load_variables
from deit_jax.training.program import build_model
from deit_jax.weights import MisfitError, save_weights, timm
from tests.tiny import tiny_config, tiny_teacher_config

PLAIN = {
    "distillation__kind": "none",
    "teacher__weights": "",
    "model__name": "deit_tiny_patch16_224",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """timm-named files of random weights, 10 classes, 28 pixels: {"distilled" or "plain": path}."""
    folder = tmp_path_factory.mktemp("files")
    paths = {}
    for kind, changes in (("distilled", {}), ("plain", PLAIN)):
        model = build_model(tiny_config(**changes), num_classes=10, image_size=28, compute_dtype="float32")
        variables = jax.jit(model.init)(jax.random.key(7), np.zeros((1, 28, 28, 3), np.float32))
        paths[kind] = str(save_weights(variables, model, folder / f"{kind}.safetensors"))
    return paths


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))


def without(params, *names):
    return {name: tree for name, tree in params.items() if name not in names}


@pytest.mark.parametrize("which", ["raw", "ema"])
def test_weights_of_a_workdir_are_loaded_bit_exactly(trained_student, tmp_path, which):
    initial = load_initial(tiny_config(model__weights=str(trained_student), model__variables=which), tmp_path)
    assert_equal(initial.variables["params"], load_variables(trained_student, which)[0]["params"])
    where = f"{which} weights of {trained_student} after step 1"
    assert initial.description == f"deit_tiny_distilled_patch16_224, {where}"


def test_weights_of_a_workdir_fit_scanned_blocks(trained_student, tmp_path):
    config = tiny_config(model__weights=str(trained_student), model__scan_blocks=True)
    blocks = load_initial(config, tmp_path).variables["params"]["blocks"]
    trained = load_variables(trained_student)[0]["params"]
    np.testing.assert_array_equal(blocks["mlp"]["fc1"]["kernel"][1], trained["blocks_1"]["mlp"]["fc1"]["kernel"])


def test_another_size_and_other_classes_change_the_same_weights_as_the_released_code(files, tmp_path):
    """Heads of another shape are dropped, prefix tokens kept, patch embeddings resized bicubically; the rest is unchanged."""
    initial = load_initial(tiny_config(model__weights=files["distilled"], num_classes=12, image_size=42), tmp_path)
    tensors = safetensors.numpy.load_file(files["distilled"])
    given, params = timm.to_variables(tensors)["params"], initial.variables["params"]
    changed = ("head", "head_dist", "pos_embed")
    assert_equal(without(params, *changed), without(given, *changed))
    assert params["pos_embed"].shape == (1, 2 + 9, 16)
    np.testing.assert_array_equal(params["pos_embed"][:, :2], given["pos_embed"][:, :2])
    resized = resize_position_embedding(given["pos_embed"], (3, 3), num_prefix_tokens=2)  # PyTorch's, tests/models
    np.testing.assert_array_equal(params["pos_embed"], resized)
    # The new heads are those of a random start from the seed.
    model = build_model(tiny_config(), num_classes=12, image_size=42, compute_dtype="float32")
    fresh = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 42, 42, 3), np.float32))["params"]
    for head in ("head", "head_dist"):
        np.testing.assert_allclose(params[head]["kernel"], fresh[head]["kernel"], rtol=1e-6)
    assert (
        "head reinitialised; head_dist reinitialised; position embedding resized from 2x2 to 3x3" in initial.description
    )


def test_heads_that_fit_are_reset_on_request(files, tmp_path):
    kept, reset = (
        load_initial(tiny_config(model__weights=files["distilled"], model__reset_heads=value), tmp_path)
        for value in (False, True)
    )
    assert_equal(without(kept.variables["params"], "head", "head_dist"),
                 without(reset.variables["params"], "head", "head_dist"))  # fmt: skip
    for head in ("head", "head_dist"):
        difference = reset.variables["params"][head]["kernel"] - kept.variables["params"][head]["kernel"]
        assert np.abs(difference).max() > 1e-3


def test_a_convnet_gets_a_new_head_and_keeps_its_statistics(trained_teacher, tmp_path):
    config = tiny_teacher_config()
    config.model.weights, config.num_classes, config.image_size = str(trained_teacher), 11, 56
    initial = load_initial(config, tmp_path)
    trained = load_variables(trained_teacher)[0]
    assert initial.variables["params"]["head"]["fc"]["kernel"].shape[1] == 11
    assert_equal(without(initial.variables["params"], "head"), without(trained["params"], "head"))
    assert_equal(initial.variables["batch_stats"], trained["batch_stats"])


def test_weights_that_do_not_fit_are_refused(trained_student, trained_teacher, files, tmp_path):
    with pytest.raises(ConfigError, match=r"are of a model with a distillation token, .* has none"):
        load_initial(tiny_config(**PLAIN, model__weights=str(trained_student)), tmp_path)
    with pytest.raises(ConfigError, match=r"are of a model with no distillation token, .* has one"):
        load_initial(tiny_config(model__weights=files["plain"]), tmp_path)
    with pytest.raises(ConfigError, match=r"holds regnety_002, which is not of the architecture of config\.model"):
        load_initial(tiny_config(model__weights=str(trained_teacher)), tmp_path)
    foreign = tmp_path / "convnet.safetensors"
    safetensors.numpy.save_file({"s1.b1.conv1.conv.weight": np.zeros((8, 8, 1, 1), np.float32)}, foreign)
    with pytest.raises(MisfitError, match=r"missing 31 .*blocks\.0\..*unexpected 1"):
        load_initial(tiny_config(model__weights=str(foreign)), tmp_path)
    deeper = tiny_config(model__weights=str(trained_student), model__overrides__depth=3)
    with pytest.raises(MisfitError, match=r"after step 1 \(names as in timm\) does not fit.*missing 12 .*blocks\.2"):
        load_initial(deeper, tmp_path)
    with pytest.raises(ConfigError, match="own --workdir"):
        load_initial(tiny_config(model__weights=str(tmp_path)), tmp_path)
    with pytest.raises(ConfigError, match="nothing: no such file or folder"):
        load_initial(tiny_config(model__weights=str(tmp_path / "nothing")), tmp_path)


def test_a_random_start_with_fine_tuning_fields_warns(tmp_path, capsys):
    assert load_initial(tiny_config(), tmp_path) is None
    assert "RANDOM" not in capsys.readouterr().out
    load_initial(tiny_config(model__reset_heads=True), tmp_path)
    assert "although config.model.reset_heads is set as" in " ".join(capsys.readouterr().out.split())
    assert load_initial(tiny_config(train__train_mode=False, optimizer__trainable=("head",)), tmp_path) is None
    printed = " ".join(capsys.readouterr().out.split())
    assert "RANDOM weights" in printed and "config.optimizer.trainable and config.train.train_mode are set" in printed


def test_heads_for_classes_with_other_names_warn(trained_student, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("deit_jax.network.read_config", _with_other_classes)
    load_initial(tiny_config(model__weights=str(trained_student)), tmp_path)
    assert "config.model.reset_heads=True starts them from scratch" in " ".join(capsys.readouterr().out.split())


def _with_other_classes(folder):
    from deit_jax.training.record import read_config

    record = read_config(folder)
    record["resolved"]["class_names"] = [f"other {i}" for i in range(10)]
    return record


@pytest.mark.long
def test_fine_tuning_at_a_larger_size_with_a_teacher_at_that_size(trained_student, trained_teacher, tmp_path, capsys):
    """Two steps through the trainer, one of them after a restart after the initial weights were moved away."""
    start = tmp_path / "start"
    trained_student.rename(start)
    config = tiny_config(
        model__weights=str(start),
        teacher__weights=str(trained_teacher),
        image_size=42,
        train__train_mode=False,
        train__max_steps=1,
        schedule__warmup_learning_rate=0.0,
        optimizer__weight_decay=0.0,
        optimizer__trainable=("^head", "^blocks_1/"),
    )
    workdir = tmp_path / "fine_tuned"
    try:
        train(config, workdir)
        printed = " ".join(capsys.readouterr().out.split())
        assert (
            "after step 1; position embedding resized from 2x2 to 3x3" in printed
            and "modules in evaluation mode" in printed
        )
        # At rate 0 the step leaves the weights and their average as they came; the optimizer is at its first step.
        state, _ = load_state(workdir)
        initial = load_initial(config, tmp_path / "new").variables
        assert_equal(state["params"], initial["params"])
        for average, value in zip(
            jax.tree.leaves(state["ema"]["params"]), jax.tree.leaves(initial["params"]), strict=True
        ):
            np.testing.assert_allclose(average, value, rtol=1e-6)
        counts = [leaf for leaf in jax.tree.leaves(state["opt_state"]) if np.ndim(leaf) == 0]
        assert [int(count) for count in counts] == [1] * len(counts)
    finally:
        start.rename(trained_student)
    config.train.max_steps = 2
    assert train(config, workdir)["step"] == 2
    printed = capsys.readouterr().out
    assert "resuming after step 1" in printed and "started from" in printed
