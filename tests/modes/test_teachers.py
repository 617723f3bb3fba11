"""Several teachers, and teachers with other images and classes than the student."""

import jax
import numpy as np
import pytest

from deit_jax.config import ConfigError
from deit_jax.config_check import validate
from deit_jax.models.ensemble import Ensemble
from deit_jax.modes.teacher import abstract_teacher, load_teacher
from deit_jax.training.program import build_model
from deit_jax.weights import save_weights
from tests.tiny import STUDENT, tiny_config

VIT = "deit_tiny_distilled_patch16_224"


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory):
    """A timm-named file of a small distilled DeiT: 28 pixels, 10 classes."""
    model = build_model(tiny_config(), num_classes=10, image_size=28, compute_dtype="float32")
    variables = jax.jit(model.init)(jax.random.key(3), np.zeros((1, 28, 28, 3), np.float32))
    return str(save_weights(variables, model, tmp_path_factory.mktemp("vit") / "vit.safetensors"))


def vit_teacher(path, **changes):
    config = tiny_config(teacher__name=VIT, teacher__weights=path, **changes)
    with config.unlocked():
        config.teacher.overrides = dict(STUDENT)
    return config


@pytest.fixture(scope="module")
def pair(trained_teacher, vit_file):
    """A configuration with a convnet and a transformer as teachers, and other images and classes than theirs."""
    fields = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "classes": (4, 2, 9)}
    changes = {f"teacher__{name}": value for name, value in fields.items()}
    config = vit_teacher(f"{trained_teacher}, {vit_file}", num_classes=3, **changes)
    config.teacher.name = f"regnety_002, {VIT}"
    return config


def test_two_teachers_become_one(pair, trained_teacher, vit_file, tmp_path):
    validate(pair)
    teacher = load_teacher(pair, tmp_path)
    one = load_teacher(tiny_config(teacher__weights=str(trained_teacher)), tmp_path)
    other = load_teacher(vit_teacher(vit_file), tmp_path)
    assert not isinstance(one.model, Ensemble) and not isinstance(other.model, Ensemble)  # alone: the network itself
    assert teacher.num_parameters == one.num_parameters + other.num_parameters
    assert str(trained_teacher) in teacher.description and vit_file in teacher.description

    images = np.random.default_rng(0).normal(size=(5, 28, 28, 3)).astype(np.float32)
    rgb = images * np.asarray(pair.augment.std) + np.asarray(pair.augment.mean)
    seen = ((rgb - 0.5) / 0.25).astype(np.float32)
    logits = [np.asarray(jax.jit(it.model.apply)(it.variables, seen).logits, np.float64) for it in (one, other)]
    powers = [np.exp(answer[:, [4, 2, 9]]) for answer in logits]
    expected = sum(power / power.sum(-1, keepdims=True) for power in powers) / 2
    found = jax.jit(teacher.model.apply)(teacher.variables, images).logits
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-4)


def test_each_of_several_teachers_has_its_own_normalisation_and_classes(trained_teacher, vit_file, tmp_path):
    config = vit_teacher(f"{trained_teacher},{vit_file}", num_classes=3, teacher__classes=(4, 2, 9))
    config.teacher.name = f"regnety_002,{VIT}"
    with config.teacher.each.unlocked():
        config.teacher.each["2"] = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "classes": (0, 1, 9)}
    validate(config)
    teacher = load_teacher(config, tmp_path)
    assert teacher.model.num_classes == 3
    assert abstract_teacher(config, 3, 28, "cpu").model == teacher.model
    one = load_teacher(tiny_config(teacher__weights=str(trained_teacher)), tmp_path)
    other = load_teacher(vit_teacher(vit_file), tmp_path)

    images = np.random.default_rng(0).normal(size=(5, 28, 28, 3)).astype(np.float32)
    rgb = images * np.asarray(config.augment.std) + np.asarray(config.augment.mean)
    seen = ((rgb - 0.5) / 0.25).astype(np.float32)
    first = np.asarray(jax.jit(one.model.apply)(one.variables, images).logits, np.float64)[:, [4, 2, 9]]
    second = np.asarray(jax.jit(other.model.apply)(other.variables, seen).logits, np.float64)[:, [0, 1, 9]]
    powers = [np.exp(answer) for answer in (first, second)]
    expected = sum(power / power.sum(-1, keepdims=True) for power in powers) / 2
    found = jax.jit(teacher.model.apply)(teacher.variables, images).logits
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("each", "message"),
    [
        ({"3": {"mean": (0.5, 0.5, 0.5)}}, r"each\.3: config.teacher.name names 2 teacher\(s\)"),
        ({"2": {"weights": "x"}}, r"each\.2\.weights: a single teacher has only the fields overrides, "),
        ({"2": {"std": (0.5, 0.5, 0.0)}}, r"each\.2\.std=\(0.5, 0.5, 0.0\) must be above 0"),
        ({"1": {"variables": "best"}}, r"each\.1\.variables='best' is none of "),
        ({"1": 4}, r"each\.1=4: give a dict of overrides"),
    ],
)
def test_wrong_fields_of_single_teachers_are_refused(each, message):
    config = tiny_config(teacher__name="regnety_002,regnety_002", teacher__weights="random,random")
    with config.teacher.each.unlocked():
        config.teacher.each.update(each)
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_a_single_teacher_of_several_is_refused_for_its_own_classes(tmp_path):
    config = tiny_config(teacher__name="regnety_002,regnety_002", teacher__weights="random,random")
    with config.teacher.each.unlocked():
        config.teacher.each["2"] = {"classes": (1, 2)}
    with pytest.raises(ConfigError, match=r"config\.teacher\.each\.2\.classes names 2 of the teacher's classes"):
        load_teacher(config, tmp_path)


def test_the_shapes_of_teachers_need_only_config_json_of_a_workdir(pair, tmp_path):
    loaded, shapes = load_teacher(pair, tmp_path), abstract_teacher(pair, 3, 28, "cpu")
    # The file is not opened: of its classes only those asked for are known, 10 here.
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes.variables) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), loaded.variables
    )
    assert shapes.model == loaded.model


def test_a_folder_of_another_framework_is_not_a_workdir(tmp_path):
    for name in ("config.json", "model.safetensors"):  # as transformers and timm save
        (tmp_path / name).write_text("{}")
    config = tiny_config(teacher__weights=str(tmp_path), augment__group_size=4)
    assert abstract_teacher(config, 10, 32, "cpu").model.num_classes == 10
    with config.teacher.unlocked():
        config.teacher.overrides.depht = 6
    with pytest.raises(ConfigError, match="has no field 'depht'; nearest: depth"):
        validate(config)


def test_random_teachers_with_the_same_name_differ(tmp_path):
    config = tiny_config(teacher__name="regnety_002,regnety_002", teacher__weights="random,random")
    params = load_teacher(config, tmp_path).variables["params"]
    kernels = [np.asarray(params[f"members_{i}"]["head"]["fc"]["kernel"]) for i in range(2)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher__name": "regnety_002,regnety_004"}, r"2 name\(s\), config.teacher.weights 1"),
        ({"teacher__weights": "a,b"}, r"1 name\(s\), config.teacher.weights 2"),
        ({"teacher__name": "regnety_002,", "teacher__weights": "a,"}, "nothing between two commas"),
        ({"teacher__std": (0.5, 0.5)}, "config.teacher.std=.*3 numbers"),
        ({"teacher__std": (0.5, 0.5, 0.0)}, "config.teacher.std=.* above 0"),
        (
            {"distillation__kind": "none", "teacher__weights": "", "teacher__classes": (1, 2)},
            r"config\.teacher is set",
        ),
        ({"distillation__kind": "labels"}, "config.distillation.kind is labels"),
        ({"model__weights": "pretrained", "model__variables": "ema"}, "config.model.variables=ema"),
    ],
)
def test_invalid_teachers_are_refused_by_validate(changes, message):
    with pytest.raises(ConfigError, match=message):
        validate(tiny_config(**changes))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((0, 1, 2), "names 3 of the teacher's classes, the student has 10"),
        ((*range(9), 10), "has class 10, but the teacher in .* has 10, counted from 0"),
        ((*range(9), -1), "-1 is not a class"),
    ],
)
def test_classes_that_a_teacher_does_not_have_are_refused(trained_teacher, tmp_path, classes, message):
    with pytest.raises(ConfigError, match=message):
        load_teacher(tiny_config(teacher__weights=str(trained_teacher), teacher__classes=classes), tmp_path)


def test_a_file_of_other_classes_or_another_size_is_refused(vit_file, tmp_path):
    with pytest.raises(
        ConfigError, match=r"has 10 classes, the student 12: use an equal number, or map .* config.teacher.classes"
    ):
        load_teacher(vit_teacher(vit_file, num_classes=12), tmp_path)
    with pytest.raises(
        ConfigError, match=r"from 2x2 to 4x4\): fine-tune it at that size first .*--config.image_size=56"
    ):
        load_teacher(vit_teacher(vit_file, image_size=56), tmp_path)
    with pytest.raises(ConfigError, match="the published weights has 1000 classes, the student 10"):
        load_teacher(vit_teacher("pretrained"), tmp_path)


def test_a_teacher_with_another_normalisation_warns(trained_teacher, tmp_path, capsys):
    load_teacher(tiny_config(teacher__weights=str(trained_teacher), augment__mean=(0.5, 0.5, 0.5)), tmp_path)
    assert "see config.teacher.mean" in " ".join(capsys.readouterr().out.split())
