import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.models import create_model, list_models
from deit_jax.models.registry import identify
from deit_jax.weights import Preprocessing, WeightsError, load_weights, save_weights, saving
from deit_jax.weights.files import read_file
from tests.models.timm_names import state_dict_shapes

from .layout_golden import SMALL

DISTILLED = "deit_tiny_distilled_patch16_224"
REGNET = {"w0": 8, "wa": 8.0, "wm": 1.5, "depth": 5, "group_width": 4, "num_classes": 5}


@pytest.fixture(scope="module")
def distilled():
    """A small distilled model with random variables."""
    return random_model(DISTILLED, SMALL, 32)


@pytest.fixture(scope="module")
def regnet():
    return random_model("regnety_002", REGNET, 32)


def random_model(name, fields, size):
    model = create_model(name, **fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    rng = np.random.RandomState(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    statistics = jax.tree.map(np.abs, variables.get("batch_stats", {}))  # variances are positive
    return model, variables | ({"batch_stats": statistics} if statistics else {})


@pytest.mark.parametrize("layout", ["timm", "hf", "mmpretrain"])
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", DISTILLED])
def test_round_trip_is_bit_exact(tmp_path, equal, layout, name):
    model, variables = random_model(name, SMALL, 32)
    for path in (tmp_path / "folder", tmp_path / "a.safetensors")[layout == "mmpretrain" :]:
        written = save_weights(variables, model, path, layout)
        equal(load_weights(written, model), variables)


def test_round_trip_of_a_regnet_is_bit_exact(tmp_path, equal, regnet):
    model, variables = regnet
    equal(load_weights(save_weights(variables, model, tmp_path / "a.safetensors"), model), variables)


@pytest.mark.parametrize("layout", ["timm", "hf", "mmpretrain"])
def test_written_names_and_shapes_equal_the_framework(recorded_shapes, layout):
    """Names and shapes equal the framework's state dict exactly, so that a strict load works."""
    timms = state_dict_shapes()
    recorded = {"timm": timms, "hf": recorded_shapes["hf_v4"], "mmpretrain": recorded_shapes["mmpretrain"]}[layout]
    names = [name for name in list_models() if layout == "timm" or name.startswith("deit")]
    assert len(names) == (20 if layout == "timm" else 8)
    for name in names:
        # Placeholders without memory, and without counters, which variables do not have.
        tensors = {key: np.broadcast_to(np.float32(0), shape) for key, shape in timms[name].items()}
        tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}
        found = saving.LAYOUTS[layout].from_timm(tensors)
        assert {key: tensor.shape for key, tensor in found.items()} == recorded[name], name


def test_written_names_equal_transformers_5(recorded_shapes):
    assert recorded_shapes["hf_v5_disk"] == recorded_shapes["hf_v4"]


def test_empty_collections_are_accepted(tmp_path, distilled):
    model, variables = distilled
    save_weights({**variables, "batch_stats": {}}, model, tmp_path / "a.safetensors")


# --- cards ----------------------------------------------------------------------------------------------------------


def card(folder, name="config.json"):
    return json.loads((folder / name).read_text())


def test_huggingface_card_overrides_wrong_defaults(tmp_path, distilled):
    model, variables = distilled
    save_weights(variables, model, tmp_path, "hf", class_names=[f"class {i}" for i in range(10)])
    config, processor = card(tmp_path), card(tmp_path, "preprocessor_config.json")
    assert config["architectures"] == ["DeiTForImageClassificationWithTeacher"]
    assert config["layer_norm_eps"] == 1e-6 and config["hidden_act"] == "gelu"
    assert config["id2label"]["3"] == "class 3" and config["label2id"]["class 3"] == 3
    assert processor["image_mean"] == [0.485, 0.456, 0.406] and processor["image_std"] == [0.229, 0.224, 0.225]
    assert processor["size"] == {"shortest_edge": 36} and processor["crop_size"] == {"height": 32, "width": 32}


@pytest.mark.parametrize(("image_size", "resized"), [(224, 256), (384, 438), (160, 182), (320, 365)])
def test_crop_equals_the_reference(image_size, resized):
    model = create_model("deit_tiny_patch16_224", image_size=image_size)
    assert Preprocessing().sides(model) == (resized, image_size)


def test_a_square_is_declared_as_each_framework_names_it(tmp_path, distilled):
    model, variables = distilled
    for layout in ("timm", "hf"):
        save_weights(variables, model, tmp_path / layout, layout, preprocessing=Preprocessing(squash=True))
    declared = card(tmp_path / "timm")["pretrained_cfg"]
    assert (declared["crop_mode"], declared["crop_pct"]) == ("squash", 1.0)
    processor = card(tmp_path / "hf", "preprocessor_config.json")
    assert processor["size"] == {"height": 32, "width": 32} and processor["do_center_crop"] is False


def test_timm_card_rebuilds_the_model(tmp_path, distilled, regnet):
    model, variables = distilled
    save_weights(variables, model, tmp_path / "a", preprocessing=Preprocessing(crop_ratio=1.0, mean=(0.5, 0.5, 0.5)))
    config = card(tmp_path / "a")
    assert config["architecture"] == DISTILLED and config["num_classes"] == 10
    assert config["model_args"] == {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2}
    assert config["pretrained_cfg"]["crop_pct"] == 1.0 and config["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    model, variables = regnet
    save_weights(variables, model, tmp_path / "b", preprocessing=Preprocessing(image_size=28))
    config = card(tmp_path / "b")
    arguments = {"group_width" if name == "group_size" else name: v for name, v in config["model_args"].items()}
    assert config["model_args"]["group_size"] == 4
    assert create_model(config["architecture"], 5, **arguments) == model and "w0" in arguments
    assert config["pretrained_cfg"]["input_size"] == [3, 28, 28]


@pytest.mark.parametrize("name", list_models())
def test_identify_named_models(name):
    assert identify(create_model(name, num_classes=7, drop_path_rate=0.1)) == (name, {})


def test_identify_changed_models():
    name, fields = identify(create_model("deit_base_distilled_patch16_384", image_size=320, depth=11))
    assert name.startswith("deit_base_distilled") and fields == {"image_size": 320, "depth": 11}
    with pytest.raises(ValueError, match="a Dense is not a registered model"):
        identify(__import__("flax").linen.Dense(3))


# --- refusals -------------------------------------------------------------------------------------------------------


def test_unsupported_layouts_are_rejected(tmp_path, distilled, regnet):
    model, variables = regnet
    for layout in ("hf", "mmpretrain"):
        with pytest.raises(WeightsError, match=f"in the layout timm or flax, not '{layout}'"):
            save_weights(variables, model, tmp_path, layout)
    with pytest.raises(WeightsError, match="four stages and a stem of stride 2 only, this one has 4 and 1"):
        save_weights(variables, model.clone(stem_stride=1), tmp_path)
    model, variables = random_model("regnety_002", REGNET | {"depth": 2, "wm": 2.0}, 32)
    with pytest.raises(WeightsError, match="this one has 2 and 2"):
        save_weights(variables, model, tmp_path)
    model, variables = distilled
    with pytest.raises(WeightsError, match=r"mmpretrain reads files, not folders; give a path that ends in \.pth"):
        save_weights(variables, model, tmp_path, "mmpretrain")
    with pytest.raises(WeightsError, match="layout='keras' is none of timm, hf, mmpretrain"):
        save_weights(variables, model, tmp_path, "keras")
    assert not list(tmp_path.iterdir())


def test_misfitting_variables_are_rejected(tmp_path, distilled):
    model, variables = distilled
    with pytest.raises(WeightsError, match=r": of another shape 4 \(head\."):
        save_weights(variables, model.clone(num_classes=3), tmp_path)
    with pytest.raises(WeightsError, match=r"missing 1 \(dist_token\)"):
        save_weights({"params": {k: v for k, v in variables["params"].items() if k != "dist_token"}}, model, tmp_path)
    with pytest.raises(WeightsError, match="3 class names for a model of 10 classes"):
        save_weights(variables, model, tmp_path, class_names=["a", "b", "c"])
    with pytest.raises(WeightsError, match="two classes have the same name"):
        save_weights(variables, model, tmp_path, class_names=["a"] * 10)
    assert not list(tmp_path.iterdir())


def test_invalid_variables_are_rejected(tmp_path, distilled):
    model, variables = distilled
    for wrong in (variables["params"], None, [1], {"params": None}):
        with pytest.raises(WeightsError, match=r"variables must be \{\"params\""):
            save_weights(wrong, model, tmp_path)
    complex_ones = jax.tree.map(lambda leaf: leaf.astype(np.complex64), variables)
    with pytest.raises(WeightsError, match="not floating-point arrays"):
        save_weights(complex_ones, model, tmp_path)


@pytest.mark.parametrize("name", ["model.npz", "model.safetensor", "model.h5", "model.CKPT"])
def test_other_suffixes_do_not_become_folders(tmp_path, distilled, name):
    model, variables = distilled
    with pytest.raises(WeightsError, match=r"weights are written as \.safetensors or \.pth"):
        save_weights(variables, model, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_workdir_is_not_overwritten(tmp_path, distilled):
    model, variables = distilled
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"is the --workdir of a training run: give another folder"):
        save_weights(variables, model, tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_invalid_preprocessing_is_rejected(tmp_path, distilled):
    model, variables = distilled
    with pytest.raises(WeightsError, match="preprocessing to 300 pixels for a model of 32"):
        save_weights(variables, model, tmp_path, preprocessing=Preprocessing(image_size=300))
    with pytest.raises(WeightsError, match=r"crop_ratio=0\.0"):
        Preprocessing(crop_ratio=0)
    with pytest.raises(WeightsError, match="three numbers"):
        Preprocessing(mean=(0.5,))


def test_numpy_values_are_written_as_json(tmp_path, distilled):
    model, variables = distilled
    preprocessing = Preprocessing(mean=np.full(3, 0.5, np.float32), std=np.float32([1, 1, 1]))
    for layout in ("timm", "hf"):
        save_weights(variables, model, tmp_path, layout, preprocessing=preprocessing, class_names=np.arange(10))
    assert card(tmp_path)["id2label"]["3"] == "3"
    save_weights(variables, model, tmp_path, "timm")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]  # nothing stale


def test_an_older_export_is_replaced(tmp_path, distilled):
    model, variables = distilled
    save_weights(variables, model, tmp_path)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, variables)
    path = save_weights(doubled, model, tmp_path)
    np.testing.assert_array_equal(read_file(path)["norm.bias"], doubled["params"]["norm"]["bias"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
