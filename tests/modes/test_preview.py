import numpy as np
import pytest
from PIL import Image

from deit_jax.config import ConfigError
from deit_jax.data.registry import open_source
from deit_jax.data.sources import DataError
from deit_jax.modes.preview import evaluation_paths, operation_names, preview, stages
from deit_jax.training.first_images import mixture
from deit_jax.training.preparation import open_run
from deit_jax.training.step import step_keys
from tests.augment.table_9 import table_9
from tests.data.trees import grow
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def seen():
    """The recipe, what was drawn for 16 embedded images, and the images after each stage."""
    augment = table_9(10, group_size=8, erase_probability=0.5)
    batch = [open_source(tiny_config().data, "train")[i] for i in range(16)]
    images = np.stack([np.broadcast_to(np.atleast_3d(image), (28, 28, 3)) for image, _ in batch])
    labels = np.array([label for _, label in batch], np.int32)
    key, _ = step_keys(0, 0)
    return augment, operation_names(augment, key, 16), *stages(augment, key, images, labels)


def test_every_column_adds_one_stage_to_the_previous_one(seen):
    _, names, pictures, _ = seen
    crop, flip, operations, erased, mixed = (pictures[:, i] for i in range(5))
    flipped = [np.array_equal(a[:, ::-1], b) for a, b in zip(crop, flip, strict=True)]
    assert all(mirrored or np.array_equal(a, b) for mirrored, a, b in zip(flipped, crop, flip, strict=True))
    assert 0 < sum(flipped) < 16
    # What the captions say is what was done.
    for name, before, after in zip(names, flip, operations, strict=True):
        assert name != "none" or np.array_equal(before, after)
    assert 0 < sum(name == "none" for name in names) < 16
    boxes = [np.any(a != b, axis=-1) for a, b in zip(operations, erased, strict=True)]
    assert 0 < sum(box.any() for box in boxes) < 16
    assert np.any(erased != mixed)
    assert any("Rotate" in name or "Shear" in name or "Posterize" in name for name in names)


def test_captions_show_the_mixture_without_the_smoothing():
    names = ("cat", "dog", "cow")
    target = 0.9 * np.array([0.25, 0.75, 0]) + 0.1 / 3
    assert mixture(target, names, 0.1) == "0.75 dog + 0.25 cat"
    assert mixture(0.9 * np.array([0, 0, 1.0]) + 0.1 / 3, names, 0.1) == "cow"


def test_disabled_stages_change_nothing(seen):
    _, _, pictures, _ = seen
    augment = table_9(10, rand_augment="", erase_probability=0.0, mixup_alpha=0.0, cutmix_alpha=0.0)
    key, _ = step_keys(0, 0)
    plain, _ = stages(augment, key, pictures[:, 0], np.zeros(16, np.int32))
    np.testing.assert_array_equal(plain[:, 1], plain[:, 4])
    assert operation_names(augment, key, 3) == ["", "", ""]
    np.testing.assert_array_equal(plain[:, 1], pictures[:, 1])  # the same draws: a stage that is off changes no other


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of ten images, and a text file."""
    root = tmp_path_factory.mktemp("photos")
    names = [f"{name}/{number}.png" for name in ("cat", "dög") for number in range(10)]
    return grow(root, *names, "cat/read me.txt")


def folder_config(path, **changes):
    return tiny_config(data__source="folder", data__path=str(path), data__max_eval_images=None, train__batch_size=8,
                       data__repeats=1, **changes)  # fmt: skip


def test_the_data_is_described_as_a_training_does(photos, tmp_path, capsys):
    preview(folder_config(photos, data__held_out=0.2), tmp_path / "a.png")
    printed = " ".join(capsys.readouterr().out.split())  # long paths are folded
    assert "16 training images, 4 for evaluation, 2 classes (20% of every class held out)" in printed
    assert "data notes" in printed and "1 .txt" in printed


def test_evaluation_images_that_a_training_would_lack_are_a_warning(tmp_path, capsys):
    grow(tmp_path, *(f"train/{name}/{number}.png" for name in "ab" for number in range(8)))
    preview(folder_config(tmp_path), tmp_path / "a.png")
    printed = " ".join(capsys.readouterr().out.split())
    assert "warning: a training would stop here: " in printed and "16 training images, no for evaluation" in printed
    with pytest.raises(DataError, match="validation"):
        preview(folder_config(tmp_path), tmp_path / "a.png", held_out_list=tmp_path / "list.txt")


def test_the_list_of_held_out_images_has_those_of_the_training(photos, tmp_path):
    """Relative to data.path, also in a folder of the split, and all of them whatever data.max_eval_images is."""
    config = folder_config(photos, data__held_out=0.2)
    preview(config, tmp_path / "a.png", held_out_list=tmp_path / "deep" / "list.txt")
    listed = (tmp_path / "deep" / "list.txt").read_text(encoding="utf-8").splitlines()
    opened = open_run(config, tmp_path / "run")
    evaluated = [opened.eval_source.describe(index) for index in range(len(opened.eval_source))]
    trained = [opened.train_source.describe(index) for index in range(len(opened.train_source))]
    assert [str(photos / name) for name in listed] == evaluated and len(listed) == 4
    assert not set(evaluated) & set(trained)

    grow(tmp_path / "split", *(f"{split}/{name}/1.png" for split in ("train", "val") for name in "ab"))
    with_split = folder_config(tmp_path / "split")
    assert evaluation_paths(with_split) == ["val/a/1.png", "val/b/1.png"]
    with_split.data.max_eval_images = 1
    assert evaluation_paths(with_split) == ["val/a/1.png", "val/b/1.png"]


def test_images_without_a_usable_path_are_refused(photos, tmp_path):
    with pytest.raises(ConfigError, match=r"the images of config\.data\.source=fashion_mnist_10k have no paths"):
        preview(tiny_config(), tmp_path / "a.png", held_out_list=tmp_path / "list.txt")
    assert not (tmp_path / "list.txt").exists()
    grow(tmp_path / "data", "train/a/1.png", "val/a/1\n2.png")
    with pytest.raises(ConfigError, match=r"has a line break: rename the file$"):
        evaluation_paths(folder_config(tmp_path / "data"))
    (tmp_path / "file").touch()
    config = folder_config(photos, data__held_out=0.2)
    with pytest.raises(ConfigError, match=r"^--held_out_list=.*list\.txt cannot be written \(.*\); fix that$"):
        preview(config, tmp_path / "a.png", held_out_list=tmp_path / "file" / "list.txt")


def test_a_picture_is_written(tmp_path):
    preview(tiny_config(), tmp_path / "deep" / "a.png", rows=3)
    picture = Image.open(tmp_path / "deep" / "a.png")
    assert picture.width > 900 and picture.height > 600
    assert len(np.unique(np.asarray(picture.convert("L")))) > 100
    with pytest.raises(ConfigError, match=r"a preview must end in \.png"):
        preview(tiny_config(), tmp_path / "a.txt")
