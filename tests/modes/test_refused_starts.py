"""A start that is refused changes nothing: neither a new workdir nor an existing one."""

import json
import re

import flax.linen as nn
import numpy as np
import pytest
from PIL import Image

from deit_jax.config import ConfigError
from deit_jax.data.sources import DataError
from deit_jax.errors import UserError
from deit_jax.models import register_model, registry
from deit_jax.modes.evaluate import evaluate
from deit_jax.modes.train import train
from tests.end_to_end.commands import refused
from tests.tiny import STUDENT, tiny_config, tiny_teacher_config


def images(root, classes="abc", count=20):
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("val", 4)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                Image.fromarray(rng.integers(0, 255, (28, 28), dtype=np.uint8)).save(
                    root / split / name / f"{i:02d}.png"
                )
    return root


PLAIN = dict(distillation__kind="none", teacher__weights="", model__name="deit_tiny_patch16_224", data__repeats=1,
             data__source="folder", augment__groups_per_block=2, train__batch_size=8, evaluation__batch_size=8,
             model__overrides__depth=1, augment__erase_probability=0.0, ema__decay=0.0)  # fmt: skip


def plain(folder, **changes):
    return tiny_config(**PLAIN | {"data__path": str(folder)} | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder of images, workdir) of a run that was stopped."""
    root = tmp_path_factory.mktemp("run")
    folder = images(root / "data")
    train(plain(folder, train__max_steps=2), root / "work")
    return folder, root / "work"


def test_a_run_records_what_auto_chose(trained):
    record = json.loads((trained[1] / "config.json").read_text())
    assert (record["config"]["model"]["attention"], record["resolved"]["attention"]) == ("auto", "xla")


def contents(folder):
    """The content and modification time of every file."""
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__overrides": STUDENT | {"num_heads": 3}}, "not a multiple of num_heads=3"),
        ({"augment__mixup_alpha": -1.0}, "mixup_alpha"),
        ({"model__attention": "cudnn"}, "cudnn"),
        ({"train__accumulation_steps": 3}, "accumulation_steps=3"),
        ({"optimizer__trainable": ("nothing",)}, "matches no parameter name"),
        ({"teacher__weights": "/nowhere"}, "no such file"),
        ({"data__source": "npz", "data__path": "/nowhere.npz"}, "no such file"),
        ({"num_classes": 4}, "the dataset has 10 classes"),
    ],
)
def test_a_refused_start_writes_nothing(tmp_path, changes, message):
    config = tiny_config()
    with config.unlocked():
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    with pytest.raises(UserError, match=message) as error:
        train(config, tmp_path / "work")
    assert "\n" not in str(error.value) and not (tmp_path / "work").exists()


def test_a_student_that_cannot_be_evaluated_is_refused_before_its_teacher_is_trained(tmp_path):
    path = tmp_path / "a.npz"
    content = {f"{part}_{what}": it for part in ("train", "other") for what, it in
               (("images", np.zeros((64, 28, 28), np.uint8)), ("labels", np.arange(64) % 2))}  # fmt: skip
    np.savez(path, class_names=["a", "b"], **content)
    config = tiny_config(teacher__weights="", data__source="npz", data__path=str(path), data__eval_split="test")
    config.teacher.recipe = tiny_teacher_config()
    with pytest.raises(DataError, match="test_images"):
        train(config, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_recipe_of_other_classes_is_refused_before_the_teacher_is_trained(tmp_path):
    images(tmp_path / "data")
    config = plain(tmp_path / "data", distillation__kind="hard", model__name="deit_tiny_distilled_patch16_224")
    config.teacher.recipe = tiny_teacher_config()
    with pytest.raises(
        ConfigError, match=r"config\.teacher\.recipe trains on other classes than the student's \(new: 'T-shirt"
    ):
        train(config, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_renamed_class_is_refused_and_the_workdir_is_unchanged(trained):
    folder, workdir = trained
    before = contents(workdir)
    for split in ("train", "val"):
        (folder / split / "a").rename(folder / split / "zz")
    try:
        fields = PLAIN | {"data__path": folder}
        flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
        line = refused("--config=tests/tiny.py", f"--workdir={workdir}", *flags)
        assert "was trained on other classes (new: 'zz'; missing: 'a')" in line
        with pytest.raises(DataError, match="new: 'zz'"):
            evaluate(plain(folder), workdir)
    finally:
        for split in ("train", "val"):
            (folder / split / "zz").rename(folder / split / "a")
    assert contents(workdir) == before


def test_added_images_are_refused_unless_on_change_is_continue(trained, capsys):
    folder, workdir = trained
    before = contents(workdir)
    for i in range(8):
        Image.new("L", (28, 28)).save(folder / "train/b" / f"new{i}.png")
    config = plain(folder, train__max_steps=3)
    with pytest.raises(
        ConfigError, match=r"60 training images then, 68 now\): restore it, or continue .*on_change=continue"
    ):
        train(config, workdir)
    assert contents(workdir) == before
    config.data.on_change = "continue"
    assert train(config, workdir)["step"] == 3
    printed = " ".join(capsys.readouterr().out.split())
    assert "resuming after step 2" in printed and re.search(r"3 steps of 8 images, 7 per epoch", printed)


class Faulty(nn.Module):
    """A registered model that cannot be trained."""

    num_classes: int = 1000

    @nn.compact
    def __call__(self, images, train):
        if train:
            raise RuntimeError("not written yet")
        return nn.Dense(self.num_classes)(images.mean(axis=(1, 2)))


def test_a_faulty_registered_model_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    register_model("faulty", Faulty, image_size=28)
    config = tiny_config(
        distillation__kind="none", teacher__weights="", model__name="faulty", model__drop_path_rate=0.0
    )
    with config.unlocked():
        config.model.overrides = {}
    with pytest.raises(UserError, match=r"Faulty: its call raises RuntimeError: not written yet \(.*, line \d+\)"):
        train(config, tmp_path / "work")
    assert not list(tmp_path.iterdir())
