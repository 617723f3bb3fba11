"""Runs that distil features: they resume exactly, and nothing of the projections leaves the train state."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from deit_jax.config import ConfigError
from deit_jax.config_check import validate
from deit_jax.modes.export import export
from deit_jax.modes.report import report
from deit_jax.modes.teacher import load_teacher
from deit_jax.modes.train import train
from deit_jax.parallel.mesh import make_mesh
from deit_jax.reporting.run_log import read_metrics
from deit_jax.training.checkpointing import load_state
from deit_jax.training.optimizer import parameter_names
from deit_jax.training.plan import resolve
from deit_jax.training.program import build_program
from tests.tiny import tiny_config

FEATURES = dict(features__pairs=("patch_1:s1", "class_2:final"), features__cosine=2.0, distillation__kind="labels")


def features_config(teacher, **changes):
    return tiny_config(**FEATURES | {"teacher__weights": str(teacher)} | changes)


def leaves(workdir):
    state, step = load_state(workdir)
    names = jax.tree_util.tree_leaves_with_path(state)
    return step, {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in names}


@pytest.fixture(scope="module")
def finished(trained_teacher, tmp_path_factory):
    """The workdir of a run of four steps that was stopped after two, when its checkpoint was written, and resumed."""
    workdir = tmp_path_factory.mktemp("run") / "features"
    train(features_config(trained_teacher, train__max_steps=2), workdir)
    train(features_config(trained_teacher), workdir)
    return workdir


def test_a_resumed_run_equals_one_that_was_not_stopped(finished, trained_teacher, tmp_path, capsys):
    train(features_config(trained_teacher), tmp_path / "whole")
    announced = " ".join(capsys.readouterr().out.split())
    # 16 channels to the stage's 8, and to 16.
    assert "patch_1 <- s1, class_2 <- final; cosine 2; projections of 408 parameters, not exported" in announced
    assert "teacher's top-1" not in announced
    (step, resumed), (_, whole) = leaves(finished), leaves(tmp_path / "whole")
    assert step == 4 and set(resumed) == set(whole)
    assert {"projections/patch_1-s1/kernel", "projections/class_2-final/bias"} <= set(whole)
    assert any(name.endswith("mu/feature_projections/patch_1-s1/kernel") for name in whole)
    assert not any("projections" in name for name in whole if name.startswith(("params/", "ema/")))
    for name, leaf in whole.items():
        np.testing.assert_array_equal(resumed[name], leaf, err_msg=name)
    rows = [row for row in read_metrics(finished) if "train/feature_cosine" in row]
    assert len(rows) == 4
    for row in rows:
        expected = (
            0.5 * row["train/class_loss"] + 0.5 * row["train/distillation_loss"] + 2 * row["train/feature_cosine"]
        )
        np.testing.assert_allclose(row["train/loss"], expected, rtol=1e-5)


def test_another_feature_section_is_another_run(finished, trained_teacher):
    with pytest.raises(ConfigError, match=r"differs in features\.cosine"):
        train(features_config(trained_teacher, features__cosine=1.0, train__max_steps=5), finished)


@pytest.mark.parametrize("layout", ["timm", "hf", "flax"])
def test_the_exported_weights_have_no_projections(finished, trained_student, tmp_path, layout):
    """`trained_student` has the same model, and was distilled without features."""
    files = {}
    for name, workdir in (("with", finished), ("without", trained_student)):
        path = export(workdir, tmp_path / name, layout=layout, which="ema")
        tensors = load_file(path)
        files[name] = {key: (tensor.shape, tensor.dtype) for key, tensor in tensors.items()}
        assert "projection" not in (path.parent / "config.json").read_text()
    assert files["with"] == files["without"] and files["with"]


@pytest.mark.long
def test_the_exported_student_loads_strictly_in_timm(finished, tmp_path):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    path = export(finished, tmp_path / "timm", layout="timm", which="raw")
    peer = timm.create_model(f"local-dir:{path.parent}", pretrained=True)
    tensors = {name: torch.from_numpy(array) for name, array in load_file(path).items()}
    peer.load_state_dict(tensors, strict=True)


@pytest.mark.long
def test_the_exported_student_loads_strictly_in_transformers(finished, tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    export(finished, tmp_path / "hf", layout="hf", which="raw")
    load = transformers.AutoModelForImageClassification.from_pretrained
    _, info = load(tmp_path / "hf", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info


def test_the_report_shows_the_features_and_their_losses(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    report(workdir)
    page = (workdir / "report.html").read_text()
    assert "labels, teacher regnety_002, features patch_1 &lt;- s1" in page and "Feature losses" in page


def test_a_teacher_of_features_alone_may_have_other_classes(trained_teacher, tmp_path):
    config = features_config(trained_teacher, num_classes=12)
    validate(config)
    assert load_teacher(config, tmp_path).model.num_classes == 10
    config.distillation.kind = "hard"
    with pytest.raises(ConfigError, match="10 classes, the student 12"):
        load_teacher(config, tmp_path)


def test_a_feature_that_a_teacher_in_a_workdir_lacks_is_refused_before_anything_is_written(trained_teacher, tmp_path):
    config = features_config(trained_teacher, features__pairs=("patch_1:s4",))
    validate(config)  # its stages are known when it is loaded
    with pytest.raises(ConfigError, match="the teacher regnety_002 has no feature 's4'; it has stem, s1 to s2, final"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_projections_are_trained_if_only_the_head_is(trained_teacher, tmp_path):
    config = features_config(trained_teacher, optimizer__trainable=("^head",))
    plan = resolve(config, num_images=64, data_classes=10)
    program = build_program(config, plan, make_mesh(jax.devices()[:1]), teacher=load_teacher(config, tmp_path))
    moments = [name for name in parameter_names(program.abstract_state.opt_state) if "/mu/" in name]
    assert any(name.endswith("mu/head/kernel") for name in moments)
    assert sum("feature_projections" in name for name in moments) == 4 and not any("blocks" in name for name in moments)


def test_a_run_from_before_features_continues_without_them(trained_student, trained_teacher, tmp_path):
    workdir = shutil.copytree(trained_student, tmp_path / "run")
    record = json.loads((workdir / "config.json").read_text())
    del record["config"]["features"]
    (workdir / "config.json").write_text(json.dumps(record))
    config = tiny_config(teacher__weights=str(trained_teacher), train__max_steps=2)
    assert train(config, workdir)["step"] == 2
    assert not any("projections" in name for name in leaves(workdir)[1])
    config.features.pairs, config.features.mse = ("patch_1:s1",), 1.0
    with pytest.raises(ConfigError, match=r"differs in features\.mse, features\.pairs"):
        train(config, workdir)
