from pathlib import Path

import pytest

from deit_jax import Classifier
from tests.modes.workdirs import untrained
from tests.tiny import tiny_config, tiny_teacher_config

GOLDEN = Path(__file__).parents[1] / "golden"
CHINA, FLOWER = GOLDEN / "crops_china.jpg", GOLDEN / "crops_flower.jpg"


@pytest.fixture(scope="session")
def vit_workdir(tmp_path_factory):
    """A distilled DeiT, untrained, whose heads are fused by softmax and whose evaluation crops 28 of 32 pixels."""
    config = tiny_config(evaluation__crop_ratio=0.875, model__fusion="softmax", model__scan_blocks=True)
    return untrained(tmp_path_factory.mktemp("vit"), config)


@pytest.fixture(scope="session")
def regnet_workdir(tmp_path_factory):
    """An untrained RegNetY."""
    return untrained(tmp_path_factory.mktemp("regnet"), tiny_teacher_config())


@pytest.fixture(scope="session")
def vit(vit_workdir):
    return Classifier.from_workdir(vit_workdir, batch_size=3)


@pytest.fixture(scope="session")
def regnet(regnet_workdir):
    return Classifier.from_workdir(regnet_workdir, batch_size=3)
