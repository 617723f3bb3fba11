import pytest

from deit_jax.modes.train import train
from tests.fewer_devices import fewer_devices
from tests.tiny import tiny_config, tiny_teacher_config


@pytest.fixture(scope="module", autouse=True)
def devices():
    """Runs in the test's own process have one device."""
    with fewer_devices():
        yield


@pytest.fixture(scope="session")
def trained_teacher(tmp_path_factory):
    """The workdir of a small RegNetY trained for one step."""
    workdir = tmp_path_factory.mktemp("teacher")
    config = tiny_teacher_config()
    config.train.max_steps = 1
    with fewer_devices():  # a session's fixture is made before a module's
        train(config, workdir)
    return workdir


@pytest.fixture(scope="session")
def trained_student(tmp_path_factory, trained_teacher):
    """The workdir of a small distilled DeiT trained for one step."""
    workdir = tmp_path_factory.mktemp("student")
    with fewer_devices():
        train(tiny_config(teacher__weights=str(trained_teacher), train__max_steps=1), workdir)
    return workdir
