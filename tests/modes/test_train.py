import pytest

from deit_jax.cache_folder import shared_cache_folder
from deit_jax.config import ConfigError
from deit_jax.data.registry import open_source
from deit_jax.data.sources import DataError
from deit_jax.modes.initial import load_initial
from deit_jax.modes.train import load_teacher, train
from deit_jax.training import preparation
from deit_jax.training.checkpoint_folder import CheckpointError
from deit_jax.training.checkpointing import load_variables
from deit_jax.training.state import count_parameters
from tests.tiny import STUDENT, tiny_config, tiny_teacher_config

from .workdirs import untrained


def test_a_teacher_is_built_as_recorded_in_its_workdir(trained_teacher, tmp_path):
    config = tiny_config(teacher__weights=str(trained_teacher))
    with config.unlocked():
        config.teacher.overrides = {}  # its own configuration knows better
    teacher = load_teacher(config, tmp_path)
    assert teacher.model.w0 == 8 and teacher.model.num_classes == 10
    assert teacher.model.folded and set(teacher.variables) == {"params"}
    assert teacher.num_parameters == count_parameters(load_variables(trained_teacher)[0])  # before the folding
    assert str(trained_teacher) in teacher.description


def test_raw_and_ema_weights_differ(trained_teacher, tmp_path):
    kernels = [
        load_teacher(tiny_config(teacher__weights=str(trained_teacher), teacher__variables=which), tmp_path)
        .variables["params"]["head"]["fc"]["kernel"]
        for which in ("raw", "ema")
    ]  # fmt: skip
    assert abs(kernels[0] - kernels[1]).max() > 0


def test_teachers_that_do_not_fit_are_refused(trained_teacher, tmp_path):
    fits = {"teacher__weights": str(trained_teacher)}
    with pytest.raises(ConfigError, match="holds 'regnety_002'"):
        load_teacher(tiny_config(**fits, teacher__name="regnety_160"), tmp_path)
    with pytest.raises(ConfigError, match="has 10 classes, the student 12"):
        load_teacher(tiny_config(**fits, num_classes=12), tmp_path)
    with pytest.raises(ConfigError, match="is not the --workdir of a training run"):
        load_teacher(tiny_config(teacher__weights=str(tmp_path)), tmp_path)
    (tmp_path / "config.json").write_text((trained_teacher / "config.json").read_text())
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        load_teacher(tiny_config(teacher__weights=str(tmp_path)), tmp_path)


def test_a_transformer_teacher_of_another_size_is_refused(tmp_path):
    config = tiny_config(distillation__kind="none", teacher__weights="", train__max_steps=1, ema__decay=0.0)
    untrained(tmp_path / "teacher", config)
    wanted = {"teacher__weights": str(tmp_path / "teacher"), "teacher__name": config.model.name}
    assert load_teacher(tiny_config(**wanted), tmp_path).model.image_size == 28
    with pytest.raises(ConfigError, match="takes images of 28 pixels, the student's have 56"):
        load_teacher(tiny_config(**wanted, image_size=56), tmp_path)


def test_a_student_that_cannot_be_built_is_refused_before_the_teacher_is_trained(tmp_path):
    config = tiny_config(teacher__weights="")
    config.teacher.recipe = tiny_teacher_config()
    with config.unlocked():
        config.model.overrides = STUDENT | {"num_heads": 3}
    with pytest.raises(ConfigError, match="embed_dim=16 is not a multiple of num_heads=3"):
        train(config, tmp_path)
    assert not (tmp_path / "teacher").exists()


def test_a_teacher_trained_first_shares_the_cache_folder_of_its_student(tmp_path, monkeypatch):
    opened = {}

    def open_run(config, workdir, shared):
        opened[workdir.path] = shared
        if workdir.path.name == "teacher":
            raise ConfigError("that is enough")
        return preparation.open_run(config, workdir, shared)

    monkeypatch.setattr("deit_jax.modes.train.open_run", open_run)
    config = tiny_config(teacher__weights="")
    config.teacher.recipe = tiny_teacher_config()
    with pytest.raises(ConfigError, match="that is enough"):
        train(config, tmp_path / "run")
    shared = shared_cache_folder(tmp_path / "run")
    assert opened == {tmp_path / "run": shared, tmp_path / "run" / "teacher": shared}


def test_teacher_and_initial_weights_use_the_class_names_of_the_open_data(trained_teacher, trained_student, tmp_path):
    names = open_source(tiny_config().data, "train").class_names
    gone = {"data__source": "npz", "data__path": str(tmp_path / "gone.npz")}
    config = tiny_config(teacher__weights=str(trained_teacher), **gone)
    with pytest.raises(DataError, match="gone"):
        load_teacher(config, tmp_path)
    assert load_teacher(config, tmp_path, names).model.num_classes == 10
    config = tiny_config(model__weights=str(trained_student), **gone)
    with pytest.raises(DataError, match="gone"):
        load_initial(config, tmp_path)
    assert load_initial(config, tmp_path, None, names) is not None
