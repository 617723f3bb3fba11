import copy
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from configs.own_images import get_config
from deit_jax.config import ConfigError
from deit_jax.config_check import validate
from deit_jax.config_file import Override, apply
from deit_jax.data.registry import open_source
from deit_jax.data.unlabelled import open_training_images
from deit_jax.training.optimizer import parameter_names
from deit_jax.training.plan import plan_of, resolve
from deit_jax.training.program import build_model


def test_three_classes_of_a_few_images_are_enough(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        for i in range(8):
            Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(tmp_path / name / f"{i}.png")
    for argument in ("tiny", "base,distilled,384px"):
        config = get_config(argument)
        config.data.path = str(tmp_path)
        validate(config)
        source = open_source(config.data, "train")
        plan = resolve(config, num_images=len(source), data_classes=3)
        assert (plan.steps_per_epoch, plan.num_classes) == (1, 3)
        assert len(open_source(config.data, "eval")) == 6
    assert (plan.image_size, config.model.name) == (384, "deit_base_distilled_patch16_384")


def test_it_starts_from_published_weights():
    assert get_config().model.weights == get_config("small").model.weights == "pretrained"


def test_an_unknown_word_raises():
    with pytest.raises(ConfigError, match=r"configs/own_images\.py:smal: 'smal' is unknown, the nearest is 'small'"):
        get_config("smal")


def test_unlabelled_images_are_for_the_student_alone(tmp_path):
    config = get_config("small,distilled,unlabelled").lock()
    for name in ("data/a/1.png", "data/a/2.png", "data/b/1.png", "data/b/2.png", "more/1.png", "more/x/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    given = {"data.path": str(tmp_path / "data"), "unlabelled.path": str(tmp_path / "more"), "train.batch_size": "3"}
    apply(config, [Override(*each) for each in given.items()])
    validate(config)
    assert config.teacher.recipe.unlabelled.source == ""
    plan = plan_of(config, open_training_images(config))
    assert (plan.labelled.batch_size, plan.unlabelled.batch_size, plan.unlabelled.num_examples) == (1, 2, 2)
    with pytest.raises(ConfigError, match="unlabelled needs distilled: a teacher labels the images"):
        get_config("small,unlabelled")


def test_a_distilled_model_has_a_teacher_of_the_same_images():
    config = get_config("distilled").lock()
    assert config.distillation.kind == "hard" and config.model.name == "deit_tiny_distilled_patch16_224"
    given = {"data.path": "/photos", "data.held_out": "0.3", "data.num_threads": "3", "image_size": "256"}
    apply(config, [Override(*each) for each in given.items()])
    validate(config)
    recipe = config.teacher.recipe
    assert recipe.data.to_dict() == config.data.to_dict() and recipe.data.path == "/photos"
    assert recipe.image_size == 256 and recipe.model.name == config.teacher.name == "regnety_160"
    assert recipe.model.weights == "pretrained" and recipe.model.reset_heads
    for other in (copy.deepcopy(config), config.copy_and_resolve_references()):
        assert json.loads(other.to_json_best_effort()) == json.loads(config.to_json_best_effort())
    assert get_config("base,distilled,384px").teacher.recipe.image_size == 384
    apply(config, [Override("teacher.name", "regnety_032"), Override("teacher.recipe.model.weights", "/file")])
    assert (recipe.model.name, config.model.weights) == ("regnety_032", "pretrained")
    validate(config)


def test_the_teacher_learns_its_last_stage_and_its_classifier():
    recipe = get_config("distilled").teacher.recipe
    model = build_model(recipe, num_classes=3, image_size=64, compute_dtype="float32")
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))["params"]
    names = parameter_names(shapes)
    learned = {name.split("/")[0] for name in names if any(re.search(p, name) for p in recipe.optimizer.trainable)}
    assert learned == {"head", "s4"} < {name.split("/")[0] for name in names}


def test_another_teacher_takes_the_recipes_place():
    config = get_config("distilled").lock()
    apply(config, [Override("teacher.weights", "/run")])
    validate(config)
    assert config.teacher.recipe is None
    config = get_config("distilled").lock()
    apply(config, [Override("teacher.weights", "/run"), Override("teacher.recipe.train.epochs", "3")])
    with pytest.raises(ConfigError, match=r"config\.teacher\.weights and config\.teacher\.recipe exclude each other"):
        validate(config)


def test_both_heads_may_learn_the_labels():
    config = get_config("small,distilled,labels")
    assert config.distillation.kind == "labels" and config.teacher.recipe is None
    validate(config)
    with pytest.raises(ConfigError, match=r"own_images\.py:small,labels: labels needs distilled"):
        get_config("small,labels")
