import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from deit_jax.models import create_model
from deit_jax.weights import MisfitError, Preprocessing, WeightsError, load_weights, save_weights
from deit_jax.weights.class_names import read_class_names
from deit_jax.weights.files import read_file
from deit_jax.weights.loading import count_classes, fit_variables, fit_weights
from deit_jax.weights.native import head_names

VIT = dict(patch_size=8, embed_dim=8, depth=2, num_heads=2)


class Own(nn.Module):
    """A registered model: a layer norm, BatchNorm, and a classifier not named `head`."""

    num_classes: int = 5
    width: int = 6

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.LayerNorm()(nn.Dense(self.width)(images.mean(axis=(1, 2))))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(self.num_classes, name="answer")(x)


def variables_of(model, seed=0):
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.abs(generator.normal(size=leaf.shape)).astype(np.float32), shapes)


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, dict(one), dict(other))


def test_registered_model_round_trip(tmp_path):
    model = Own()
    variables = variables_of(model)
    path = save_weights(variables, model, tmp_path / "own.safetensors", "flax", class_names=list("abcde"))
    assert "params/LayerNorm_0/scale" in read_file(path) and "batch_stats/BatchNorm_0/mean" in read_file(path)
    equal(load_weights(path, model), variables)
    assert read_class_names(path) == tuple("abcde")
    assert count_classes(path, model=Own(num_classes=9)) == 5


def test_exported_folder_has_a_card(tmp_path):
    model = Own()
    path = save_weights(
        variables_of(model), model, tmp_path / "own", "flax", preprocessing=Preprocessing(image_size=16),
        class_names=list("vwxyz"),
    )  # fmt: skip
    card = json.loads((path.parent / "config.json").read_text())
    assert (card["module"], card["image_size"], card["num_classes"]) == ("Own", 16, 5)
    assert read_class_names(tmp_path / "own") == tuple("vwxyz")
    equal(load_weights(tmp_path / "own", model), variables_of(model))


@pytest.mark.parametrize("scan_blocks", [False, True])
def test_flax_layout_of_a_transformer(tmp_path, scan_blocks):
    model = create_model("deit_tiny_distilled_patch16_224", 3, 16, scan_blocks=scan_blocks, **VIT)
    variables = variables_of(model)
    path = save_weights(variables, model, tmp_path / "vit.safetensors", "flax")
    assert "params/blocks_1/attn/qkv/kernel" in read_file(path)
    equal(load_weights(path, model), variables)
    larger = create_model("deit_tiny_distilled_patch16_224", 3, 24, **VIT)
    assert fit_weights(path, larger).resized == "2x2 to 3x3"
    assert count_classes(path) == 3


def test_head_names_depend_on_the_number_of_classes():
    assert head_names(Own()) == ("params/answer/",)
    given, model = variables_of(Own()), Own(num_classes=7)
    fitted = fit_variables(given, model, "the run", heads="reset_if_needed", seed=3)
    assert fitted.renewed == ("answer",)
    assert fitted.variables["params"]["answer"]["kernel"].shape == (6, 7)
    equal(fitted.variables["batch_stats"], given["batch_stats"])
    np.testing.assert_array_equal(fitted.variables["params"]["Dense_0"]["kernel"], given["params"]["Dense_0"]["kernel"])
    kept = fit_variables(given, Own(), "the run", heads="reset_if_needed", seed=3)
    assert kept.renewed == ()
    fresh = fit_variables(given, Own(), "the run", heads="reset", seed=3)
    assert fresh.renewed == ("answer",)
    assert not np.array_equal(fresh.variables["params"]["answer"]["kernel"], given["params"]["answer"]["kernel"])


def test_misfits_of_registered_models_are_rejected(tmp_path):
    model, variables = Own(), variables_of(Own())
    with pytest.raises(
        MisfitError,
        match=r"the run does not fit the model: of another shape 9 \(batch_stats/BatchNorm_0/mean, .* and 6 more\)",
    ) as error:
        fit_variables(variables, Own(width=4), "the run", heads="keep", seed=0)
    assert "params/Dense_0/kernel" in error.value.misshapen and "\n" not in str(error.value)
    with pytest.raises(MisfitError, match=r"missing 1 \(params/answer/bias\)"):
        left_out = {"params": {**variables["params"], "answer": {"kernel": variables["params"]["answer"]["kernel"]}}}
        load_weights({"/".join(map(str, path)): leaf for path, leaf in _flat(variables | left_out)}, model)
    with pytest.raises(WeightsError, match="the run holds values that make every output NaN"):
        broken = jax.tree.map(lambda leaf: leaf * np.nan, variables)
        fit_variables(broken, model, "the run", heads="keep", seed=0)


def _flat(variables):
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        yield [key.key for key in path], leaf


def test_other_layouts_reject_registered_models(tmp_path):
    model = Own()
    for layout in ("timm", "hf", "mmpretrain"):
        with pytest.raises(WeightsError, match=f"a Own is written in the layout flax, not '{layout}'"):
            save_weights(variables_of(model), model, tmp_path / "own.safetensors", layout)
    assert not (tmp_path / "own.safetensors").exists()
    vit = create_model("deit_tiny_patch16_224", 3, 16, **VIT)
    save_weights(variables_of(vit), vit, tmp_path / "vit.safetensors")
    with pytest.raises(
        WeightsError, match=r"vit.safetensors \(timm\) does not fit the model: a Own is loaded from files that"
    ):
        load_weights(tmp_path / "vit.safetensors", model)


class Bare(nn.Module):
    """A model with classifier parameters of its own, and a submodule named like stacked blocks."""

    num_classes: int = 5

    @nn.compact
    def __call__(self, images):
        x = nn.Dense(6, name="blocks")(images.mean(axis=(1, 2)))
        kernel = self.param("head", nn.initializers.lecun_normal(), (6, self.num_classes))
        return x @ kernel + self.param("head_bias", nn.initializers.zeros, (self.num_classes,))


def test_head_parameters_of_the_model_itself_are_reset(tmp_path):
    assert head_names(Bare()) == ("params/head/", "params/head_bias/")
    variables = variables_of(Bare())
    path = save_weights(variables, Bare(), tmp_path / "bare.safetensors", "flax")
    for fitted in (
        fit_weights(path, Bare(num_classes=7), heads="reset_if_needed"),
        fit_variables(variables, Bare(num_classes=7), "here", heads="reset_if_needed", seed=0),
    ):
        assert fitted.renewed == ("head", "head_bias")
        equal(fitted.variables["params"]["blocks"], variables["params"]["blocks"])
        assert fitted.variables["params"]["head"].shape == (6, 7)
    equal(load_weights(path, Bare()), variables)
