import pytest

from deit_jax.modes.train import train
from tests.tiny import tiny_teacher_config


@pytest.fixture(scope="session")
def trained_teacher(tmp_path_factory):
    """The workdir of a small RegNetY trained for one step."""
    workdir = tmp_path_factory.mktemp("teacher")
    config = tiny_teacher_config()
    config.train.max_steps = 1
    train(config, workdir)
    return workdir
