import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from deit_jax.config import default_config
from deit_jax.data.folder import ImageFolderSource
from deit_jax.data.registry import EMBEDDED, open_source
from deit_jax.data.sources import ArraySource, DataError, notes_of


def config(**fields) -> ConfigDict:
    data = default_config().data
    data.update(fields)
    return data


def make_folder(root, classes):
    for name in classes:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / name / "0.png")


def test_embedded_data_set():
    train, test = (open_source(config(source="fashion_mnist_10k"), split) for split in ("train", "eval"))
    assert (len(train), len(test)) == (10_000, 2_000)
    assert train.class_names[0] == "T-shirt/top" and len(train.class_names) == 10
    assert np.bincount([train[i].label for i in range(len(train))]).tolist() == [1000] * 10
    assert np.bincount([test[i].label for i in range(len(test))]).tolist() == [200] * 10
    assert train[0].image.shape == (28, 28) and train[0].image.dtype == np.uint8
    distinct = {train[i].image.tobytes() for i in range(len(train))} | {
        test[i].image.tobytes() for i in range(len(test))
    }
    assert len(distinct) > 11_900  # real photographs, hardly any duplicates
    assert EMBEDDED.stat().st_size < 6e6


def test_images_per_class():
    data = config(source="fashion_mnist_10k", images_per_class=200)
    train, test = (open_source(data, split) for split in ("train", "eval"))
    assert np.bincount([train[i].label for i in range(len(train))]).tolist() == [200] * 10
    assert len(test) == 2_000  # the evaluation images are unaffected


def test_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, test_images=np.ones((3, 8, 8), np.uint8), test_labels=[0, 0, 0], class_names=["only"])
    source = open_source(config(source="npz", path=str(path)), "eval")
    assert isinstance(source, ArraySource) and len(source) == 3
    with pytest.raises(DataError, match="'train_images' is missing"):
        open_source(config(source="npz", path=str(path)), "train")


def test_folder_splits(tmp_path):
    make_folder(tmp_path / "train", ["a", "b"])
    make_folder(tmp_path / "val", ["a", "b"])
    data = config(source="folder", path=str(tmp_path))
    assert open_source(data, "train").describe(0) == str(tmp_path / "train/a/0.png")
    held_out = open_source(data, "eval")
    assert isinstance(held_out, ImageFolderSource)
    assert held_out.describe(0) == str(tmp_path / "val/a/0.png")  # "validation" does not exist, but "val" does
    make_folder(tmp_path / "validation", ["a", "b"])
    assert open_source(data, "eval").describe(1) == str(tmp_path / "validation/b/0.png")


def paths(source):
    return {source.describe(i) for i in range(len(source))}


@pytest.mark.parametrize("train", ["", "train"])
def test_folder_without_evaluation_images_holds_out_some(tmp_path, train):
    for name in ("a", "b"):
        (tmp_path / train / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (4, 4)).save(tmp_path / train / name / f"{i}.png")
    data = config(source="folder", path=str(tmp_path), held_out=0.2)
    training, evaluation = open_source(data, "train"), open_source(data, "eval")
    assert (len(training), len(evaluation)) == (16, 4) and training.class_names == evaluation.class_names == ("a", "b")
    assert sorted(evaluation[i].label for i in range(4)) == [0, 0, 1, 1]
    assert not paths(training) & paths(evaluation) and len(paths(training) | paths(evaluation)) == 20
    with pytest.raises(DataError, match="no such folder"):
        open_source(config(source="folder", path=str(tmp_path)), "eval")
    # an existing evaluation folder is used
    make_folder(tmp_path / "val", ["a", "b"])
    make_folder(tmp_path / "train", [name for name in ("a", "b") if not train])
    assert paths(open_source(data, "eval")) == {str(tmp_path / f"val/{name}/0.png") for name in ("a", "b")}


def test_splits_with_other_spellings_are_opened_and_noted(tmp_path):
    make_folder(tmp_path / "TRAIN", ["a", "b"])
    make_folder(tmp_path / "Test_Set", ["a", "b"])
    data = config(source="folder", path=str(tmp_path))
    train, held_out = open_source(data, "train"), open_source(data, "eval")
    assert train.notes == (f"training images come from {tmp_path / 'TRAIN'}",)
    assert paths(held_out) == {str(tmp_path / f"Test_Set/{name}/0.png") for name in ("a", "b")}
    assert held_out.notes[0].startswith(f"evaluation images come from {tmp_path / 'Test_Set'}, since")
    part = open_source(config(source="folder", path=str(tmp_path), eval_split="train[50%:]", max_eval_images=1), "eval")
    assert notes_of(train, part) == [*train.notes, f"evaluation images come from {tmp_path / 'TRAIN'}"]
    # one folder with two names
    (tmp_path / "val").symlink_to("TRAIN")
    assert (
        f"{tmp_path / 'val'} and {tmp_path / 'TRAIN'} are the same folder, by a link" in open_source(data, "eval").notes
    )


def numbers(source):
    return {source.describe(i) for i in range(len(source))}


def test_parts_of_a_split_are_training_and_evaluation_images(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (4, 4)).save(tmp_path / "train" / name / f"{i}.png")
    images = np.zeros((20, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=np.repeat([0, 1], 10), class_names=["a", "b"])
    parts = dict(train_split="train[:90%]", eval_split="train[90%:]")
    for data, whole in (
        (config(source="folder", path=str(tmp_path), **parts), 20),
        (config(source="npz", path=str(tmp_path / "a.npz"), **parts), 20),
        (config(source="fashion_mnist_10k", **parts), 10_000),
    ):
        train, held_out = open_source(data, "train"), open_source(data, "eval")
        assert (len(train), len(held_out)) == (whole * 9 // 10, whole // 10)
        assert not numbers(train) & numbers(held_out)
        assert train.class_names == held_out.class_names
        assert len({train[i].label for i in range(len(train))}) == len(train.class_names)
    data = config(source="folder", path=str(tmp_path), train_split="train", eval_split="validation[:5]")
    make_folder(tmp_path / "val", ["a", "b"])
    assert len(open_source(data, "eval")) == 2 and "/val/" in open_source(data, "eval").describe(0)
    with pytest.raises(DataError, match=r"split 'train\[90%' is invalid"):
        open_source(config(source="npz", path=str(tmp_path / "a.npz"), train_split="train[90%"), "train")


@pytest.mark.parametrize("source", ["npz", "folder"])
def test_missing_path_raises(source):
    with pytest.raises(DataError, match=rf"data\.source={source} needs data\.path"):
        open_source(config(source=source), "train")


def test_unknown_choices_raise(tmp_path):
    with pytest.raises(DataError, match=r"data\.source='imagenet' is unknown; choose"):
        open_source(config(source="imagenet"), "train")
    with pytest.raises(ValueError, match="split='test'"):
        open_source(config(source="fashion_mnist_10k"), "test")
    with pytest.raises(DataError, match=r"'cifar10' is not prepared"):
        open_source(config(source="tfds", name="cifar10", path=str(tmp_path)), "train")
