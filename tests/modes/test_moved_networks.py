"""Teachers and initial weights are identified by content: they may move, but a change is detected."""

import json
import shutil

import pytest

from deit_jax.config import ConfigError
from deit_jax.modes.export import export
from deit_jax.modes.train import train
from tests.tiny import tiny_config


def student(weights, steps, **changes):
    fast = {"evaluation__teacher": False, "data__max_eval_images": 40}
    return tiny_config(teacher__weights=str(weights), train__max_steps=steps, **fast, **changes)


def test_a_teacher_may_move_but_not_change(trained_teacher, tmp_path, capsys):
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(trained_teacher, teacher)
    train(student(teacher, 1), run)
    assert "was not trained to the end of its schedule" in " ".join(capsys.readouterr().out.split())
    record = json.loads((run / "config.json").read_text())
    [recorded] = record["resolved"]["teachers"]
    assert recorded["networks"][0]["class_names"] == record["resolved"]["class_names"]

    moved = teacher.rename(tmp_path / "elsewhere")
    file = export(moved, tmp_path / "teacher.safetensors", layout="timm", which="raw")
    for step, place in enumerate((moved, file), 2):
        assert train(student(place, step), run)["step"] == step
    before = (run / "config.json").read_bytes()
    other = export(moved, tmp_path / "ema.safetensors", layout="timm", which="ema")
    with pytest.raises(
        ConfigError, match=r"was taught by regnety_002 raw weights after step 1 .*, the teacher is now regnety_002 \("
    ):
        train(student(other, 4), run)
    with pytest.raises(ConfigError, match=r"differs in teacher\.name"):
        train(student(moved, 4, teacher__name="regnety_004"), run)
    assert (run / "config.json").read_bytes() == before


def test_initial_weights_may_move_but_not_change(trained_student, tmp_path):
    weights, run = tmp_path / "weights", tmp_path / "run"
    shutil.copytree(trained_student, weights)

    def config(place, steps, **changes):
        return student("random", steps, model__weights=str(place), **changes)

    train(config(weights, 1), run)
    moved = weights.rename(tmp_path / "elsewhere")
    assert train(config(weights, 2), run)["step"] == 2  # a resumed run reads its checkpoint
    assert train(config(moved, 3), run)["step"] == 3
    other = export(trained_student, tmp_path / "ema.safetensors", layout="timm", which="ema")
    with pytest.raises(ConfigError, match=r"started from other weights than the present config\.model\.weights"):
        train(config(other, 4), run)
    with pytest.raises(ConfigError, match=r"differs in model\.weights"):
        train(student("random", 4), run)


def test_a_run_with_more_steps_than_configured_is_not_changed(trained_teacher, tmp_path):
    run = tmp_path / "run"
    train(student("random", 2), run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for gone in ((), ("results.json",)):  # finished; and stopped before its end
        for name in gone:
            (run / name).unlink()
            before.pop(run / name)
        with pytest.raises(
            ConfigError, match=r"is already at step 2, after config\.train\.max_steps=1; raise it to resume"
        ):
            train(student("random", 1), run)
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_lost_checkpoints_are_refused(tmp_path):
    run = tmp_path / "run"
    train(student("random", 1), run)
    shutil.move(run / "checkpoints", tmp_path / "checkpoints")
    (run / "results.json").unlink()
    with pytest.raises(ConfigError, match=r"run/checkpoints is missing, although metrics\.jsonl shows that"):
        train(student("random", 2), run)
    shutil.move(tmp_path / "checkpoints", run / "checkpoints")
    assert train(student("random", 2), run)["step"] == 2
