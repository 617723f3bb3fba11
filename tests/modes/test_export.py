import json

import jax
import numpy as np
import pytest

from deit_jax.config import ConfigError
from deit_jax.modes.export import export
from deit_jax.modes.teacher import load_teacher
from deit_jax.training.checkpoint_folder import CheckpointError
from deit_jax.training.checkpointing import load_variables
from deit_jax.training.program import build_recorded_model
from deit_jax.training.record import read_config
from deit_jax.weights import WeightsError, load_weights
from tests.tiny import tiny_config


@pytest.mark.parametrize("which", ["raw", "ema"])
@pytest.mark.parametrize("layout", ["timm", "hf", "mmpretrain"])
def test_the_exported_weights_are_those_of_the_checkpoint(trained_student, tmp_path, layout, which):
    output = tmp_path / ("out.safetensors" if layout == "mmpretrain" else "out")
    path = export(trained_student, output, layout=layout, which=which)
    found = load_weights(path, build_recorded_model(read_config(trained_student)))
    expected, _ = load_variables(trained_student, which)
    for name in ("head", "head_dist", "blocks_1"):
        for one, other in zip(
            jax.tree.leaves(found["params"][name]), jax.tree.leaves(expected["params"][name]), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_the_exported_config_has_the_preprocessing_and_classes_of_the_run(trained_student, tmp_path):
    export(trained_student, tmp_path, layout="hf", which="raw")
    config = json.loads((tmp_path / "config.json").read_text())
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert config["image_size"] == 28 and config["patch_size"] == 14
    assert config["id2label"]["9"] == "Ankle boot"
    assert processor["size"] == {"shortest_edge": 28}  # tests/tiny.py evaluates whole images


def test_a_folder_without_a_checkpoint_is_refused(trained_student, tmp_path):
    with pytest.raises(ConfigError, match="is not the --workdir of a training run"):
        export(tmp_path, tmp_path / "out", layout="timm", which="raw")
    (tmp_path / "config.json").write_text((trained_student / "config.json").read_text())
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        export(tmp_path, tmp_path / "out", layout="timm", which="raw")
    assert not (tmp_path / "out").exists()


# --- and back: a file as the teacher --------------------------------------------------------------------------------


def test_a_teacher_is_loaded_from_a_file_of_another_framework(trained_teacher, tmp_path):
    path = export(trained_teacher, tmp_path / "teacher.safetensors", layout="timm", which="raw")
    from_file = load_teacher(tiny_config(teacher__weights=str(path)), tmp_path)
    from_workdir = load_teacher(tiny_config(teacher__weights=str(trained_teacher)), tmp_path)
    assert jax.tree.structure(from_file.variables) == jax.tree.structure(from_workdir.variables)
    for one, other in zip(jax.tree.leaves(from_file.variables), jax.tree.leaves(from_workdir.variables), strict=True):
        np.testing.assert_array_equal(one, other)
    assert from_file.model == from_workdir.model
    assert str(path) in from_file.description


def test_a_file_without_a_moving_average_is_refused_as_ema(trained_teacher, tmp_path):
    path = export(trained_teacher, tmp_path / "raw.safetensors", layout="timm", which="raw")
    config = tiny_config(teacher__weights=str(path), teacher__variables="ema")
    with pytest.raises(WeightsError, match="does not say that it holds a moving average"):
        load_teacher(config, tmp_path)


def test_a_teacher_file_that_does_not_fit_is_refused(trained_student, tmp_path):
    path = export(trained_student, tmp_path / "student.safetensors", layout="timm", which="raw")
    with pytest.raises(WeightsError, match=r"holds a ViT \(width 16, .*; the model is a RegNet"):
        load_teacher(tiny_config(teacher__weights=str(path)), tmp_path)
    with pytest.raises(WeightsError, match="there is no such file"):
        load_teacher(tiny_config(teacher__weights=str(tmp_path / "gone.pth")), tmp_path)
