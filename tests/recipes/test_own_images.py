import numpy as np
import pytest
from PIL import Image

from configs.own_images import get_config
from deit_jax.config import ConfigError
from deit_jax.config_check import validate
from deit_jax.data.registry import open_source
from deit_jax.training.plan import resolve


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
