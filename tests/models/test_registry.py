import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from deit_jax.models import create_model, list_models, native_image_size, register_model, registry
from deit_jax.models.registry import identify, model_family, model_fields
from deit_jax.models.regnet import RegNet, stage_plans
from deit_jax.models.vit import VisionTransformer

from .timm_names import our_shapes

# Trainable parameters, as timm counts them.
PARAMETERS = {
    "deit_tiny_patch16_224": 5_717_416,
    "deit_small_patch16_224": 22_050_664,
    "deit_base_patch16_224": 86_567_656,
    "deit_base_patch16_384": 86_859_496,
    "deit_tiny_distilled_patch16_224": 5_910_800,
    "deit_small_distilled_patch16_224": 22_436_432,
    "deit_base_distilled_patch16_224": 87_338_192,
    "deit_base_distilled_patch16_384": 87_630_032,
    "regnety_002": 3_162_996,
    "regnety_004": 4_344_144,
    "regnety_006": 6_055_160,
    "regnety_008": 6_263_168,
    "regnety_016": 11_202_430,
    "regnety_032": 19_436_338,
    "regnety_040": 20_646_656,
    "regnety_064": 30_583_252,
    "regnety_080": 39_180_068,
    "regnety_120": 51_822_544,
    "regnety_160": 83_590_140,
    "regnety_320": 145_046_770,
}


def flat_shapes(variables):
    return {tuple(key.key for key in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}


def test_names_equal_timm():
    assert sorted(list_models()) == sorted(PARAMETERS)


# Their forward pass is not in the short tier either. 160 is the paper's teacher.
LONG = {f"regnety_{size}" for size in ("006", "008", "032", "064", "080", "120")}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in PARAMETERS]
)
def test_variables_equal_timm(timm_shapes, name):
    size = native_image_size(name)
    model = create_model(name)
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    assert flat_shapes(variables) == our_shapes(timm_shapes[name])
    leaves = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in leaves) == PARAMETERS[name]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_native_image_sizes():
    assert native_image_size("deit_base_distilled_patch16_384") == 384
    assert native_image_size("deit_base_patch16_224") == 224
    assert native_image_size("regnety_160") == 224


def test_image_size_defaults_to_the_native_one():
    assert create_model("deit_base_patch16_384").image_size == 384
    assert create_model("deit_base_patch16_384", image_size=160).image_size == 160
    assert isinstance(create_model("regnety_002", image_size=32), RegNet)


def test_overrides_replace_fields():
    model = create_model(
        "deit_tiny_distilled_patch16_224", 10, 28, patch_size=4, depth=2, distilled=False, dtype=jnp.bfloat16
    )
    expected = {"num_classes": 10, "image_size": 28, "patch_size": 4, "embed_dim": 192, "num_heads": 3, "depth": 2}
    assert {key: getattr(model, key) for key in expected} == expected
    assert not model.distilled
    assert model.dtype == jnp.bfloat16
    assert create_model("regnety_002", stem_stride=1).stem_stride == 1


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("deit_small_destilled_patch16_224", "deit_small_distilled_patch16_224"),
        ("regnety160", "regnety_160"),
        ("deit_tiny", "deit_tiny_patch16_224"),
    ],
)
def test_unknown_name_suggests_the_nearest(wrong, near):
    for call in (create_model, native_image_size):
        with pytest.raises(ValueError, match=f"{wrong!r}.*{near}"):
            call(wrong)


def test_unrelated_name_lists_all_names():
    with pytest.raises(ValueError, match=r"deit_tiny_patch16_224.*regnety_320"):
        create_model("zzz")


@pytest.mark.parametrize(
    ("name", "wrong", "near"),
    [
        ("deit_tiny_patch16_224", "drop_path", "drop_path_rate"),
        ("deit_tiny_patch16_224", "embed_dims", "embed_dim"),
        ("regnety_002", "stem_strides", "stem_stride"),
    ],
)
def test_unknown_field_suggests_the_nearest(name, wrong, near):
    with pytest.raises(ValueError, match=rf"{wrong!r}.*\b{near}$"):
        create_model(name, **{wrong: 1})


def test_linen_fields_cannot_be_overridden():
    assert "parent" in {field.name for field in dataclasses.fields(VisionTransformer)}
    with pytest.raises(ValueError, match="no field 'parent'"):
        create_model("deit_tiny_patch16_224", parent=None)


def test_stages_of_the_teacher():
    # Of regnety_160; the shapes above cover widths and group widths of the others.
    stages = stage_plans(200, 106.23, 2.48, 18, 112)
    assert [tuple(stage) for stage in stages] == [(224, 2, 112), (448, 4, 112), (1232, 11, 112), (3024, 1, 112)]
    # A stage narrower than the group is one group.
    assert stage_plans(24, 36.44, 2.49, 13, 32)[0] == (24, 1, 24)
    # Width 56 of the 800 MF model becomes 64, a multiple of its group width.
    assert [stage.width for stage in stage_plans(56, 38.84, 2.40, 14, 16)] == [64, 128, 320, 768]


class Own(nn.Module):
    num_classes: int
    width: int = 8
    layers: tuple = (1,)
    image_size: int = 0

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.num_classes)(nn.Dense(self.width)(images.mean(axis=(1, 2))))


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    register_model("own_8", Own, {"layers": (2, 3)}, image_size=48)


def test_registered_model_is_created_by_name(registered):
    assert "own_8" in list_models() and native_image_size("own_8") == 48
    assert create_model("own_8", 5) == Own(num_classes=5, layers=(2, 3), image_size=48)
    assert create_model("own_8", 5, 64, width=4) == Own(num_classes=5, width=4, layers=(2, 3), image_size=64)
    assert create_model("own_8", 5, dtype=jnp.bfloat16) == create_model(
        "own_8", 5
    )  # it does not let its type be chosen
    assert model_fields("own_8") == {"width": 8, "layers": (2, 3)} and model_family("own_8") == ""
    assert identify(create_model("own_8", 5, 96)) == ("own_8", {"image_size": 96})
    with pytest.raises(ValueError, match="own_8 has no field 'widht'; nearest: width"):
        create_model("own_8", widht=4)
    register_model("own_8", Own, {"layers": (2, 3)}, image_size=48)  # as when a notebook cell runs twice


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("own_8", Own, {"layers": (4,)}), "a model named 'own_8' is already registered"),
        (("regnety_160", Own), "a model named 'regnety_160' is already registered"),
        (("own:8", Own), "invalid model name"),
        (("a/b", Own), "invalid model name"),
        ((8, Own), "invalid model name"),
        (("other", Own(num_classes=3)), "other: `module` must be a subclass of flax.linen.Module, got a Own"),
        (("other", dict), "must be a subclass of flax.linen.Module, got dict"),
        (("other", nn.Dense, {"features": 3}), "Dense, registered as other, needs a field num_classes"),
        (("other", Own, {"depth": 3}), "Own, registered as other, has no field 'depth'"),
        (("other", Own, {"num_classes": 3}), "has no field 'num_classes' to set"),
        (("other", Own, {}, 0), "image_size=0 of other"),
        (("other", Own, {}, 22.5), "image_size=22.5 of other"),
    ],
)
def test_invalid_registrations_are_rejected(registered, arguments, message):
    if arguments[0] == "own_8":

        class Other(Own):
            pass

        arguments = (arguments[0], Other, *arguments[2:])
    before = list_models()
    with pytest.raises(ValueError, match=message) as error:
        register_model(*arguments)
    assert "\n" not in str(error.value) and list_models() == before


def test_field_without_default_is_required():
    class Open(nn.Module):
        num_classes: int
        width: int

    with pytest.raises(ValueError, match=r"Open.width has no default: give it in fields of open"):
        register_model("open", Open)
