import pytest

from deit_jax.data.sources import DataError
from deit_jax.data.split_folders import (
    find_split,
    sibling_splits,
    split_note,
    unused_splits,
)
from tests.data.trees import grow


def folders(tmp_path, *names):
    return grow(tmp_path, *(f"{name}/oak/1.jpg" for name in names))


@pytest.mark.parametrize(
    ("there", "train", "validation"),
    [
        (("train", "val"), "train", "val"),
        (("Train", "VAL"), "Train", "VAL"),
        (("TRAIN", "Validation"), "TRAIN", "Validation"),
        (("training", "valid"), "training", "valid"),
        (("Training_Set", "valid-images"), "Training_Set", "valid-images"),
        (("trainset", "devset"), "trainset", "devset"),
        (("train", "eval", "test"), "train", "eval"),
        (("train", "dev", "notes"), "train", "dev"),
        (("train", "train_old", "val", "val2"), "train", "val"),
        (("train", "validation", "val"), "train", "validation"),  # the configured name itself
        (("train", "test"), "train", "test"),
        (("training data", "Testing Data"), "training data", "Testing Data"),
        (("first", "second"), None, None),
        (("constrain", "interval"), None, None),
        (("train_val",), None, None),
    ],
)
def test_find_split_by_the_default_names(tmp_path, there, train, validation):
    root = str(folders(tmp_path, *there))
    assert find_split(root, "train") == (train and f"{root}/{train}")
    assert find_split(root, "validation", or_test=True) == (validation and f"{root}/{validation}")
    if validation and "test" in validation.lower():
        assert find_split(root, "validation") is None


@pytest.mark.parametrize(
    ("there", "name", "named"),
    [
        (("train", "val", "valid"), "validation", "val and valid"),
        (("train", "dev", "eval"), "validation", "dev and eval"),
        (("Train", "TRAIN", "val"), "train", "TRAIN and Train"),
        (("training", "train_set"), "train", "train_set and training"),
        (("train", "test", "testing"), "validation", "test and testing"),
        (("A", "a"), "a", None),
    ],
)
def test_find_split_raises_if_several_match(tmp_path, there, name, named):
    root = str(folders(tmp_path, *there))
    if named is None:
        assert find_split(root, name) == f"{root}/{name}"
        return
    field = "train_split" if name == "train" else "eval_split"
    with pytest.raises(
        DataError, match=rf"the folders {named} could each be '{name}'.*--config\.data\.{field}={named.split()[0]}"
    ):
        find_split(root, name, or_test=True)


def test_find_split_accepts_links_to_the_same_folder(tmp_path):
    root = folders(tmp_path, "train", "val")
    (root / "valid").symlink_to("val")
    assert find_split(str(root), "validation") == f"{root}/val"


def test_other_names_match_literally_except_for_case(tmp_path):
    root = str(folders(tmp_path, "train", "Holdout", "valid", "testing"))
    assert find_split(root, "holdout") == f"{root}/Holdout"
    for name in ("val", "test", "hold_out", "training"):
        assert find_split(root, name) is None
    assert find_split(root, "train/oak") == f"{root}/train/oak"
    assert find_split(f"{root}/nowhere", "train") is None


def test_classes_may_have_split_names_with_held_out(tmp_path):
    root = grow(tmp_path / "vehicles", "train/1.jpg", "car/1.jpg", "dev/easy/1.jpg", "test/easy/1.jpg")
    assert find_split(str(root), "train", held_out=True) is None
    assert find_split(str(root), "validation", held_out=True) is None
    root = folders(tmp_path / "splits", "Train", "dev", "test")
    assert find_split(str(root), "train", held_out=True) == f"{root}/Train"
    assert find_split(str(root), "validation", held_out=True) == f"{root}/dev"
    root = folders(tmp_path / "kaggle", "train", "test")  # the test images are kept for the end
    grow(root, "val/unlabelled.jpg")
    assert find_split(str(root), "validation", held_out=True) is None


def test_folder_with_another_name_is_noted(tmp_path):
    assert split_note("data/train", "train", "training") == split_note("data/val", "validation", "evaluation") == []
    assert split_note("data/Train", "train", "training") == ["training images come from data/Train"]
    (note,) = split_note("data/test", "validation", "evaluation")
    assert note.startswith("evaluation images come from data/test, since there is no folder `validation` or `val`;")


def test_unused_splits_are_noted(tmp_path):
    root = folders(tmp_path, "train", "test", "other")
    grow(root, "val/unlabelled.jpg")
    expected = [f"{root}/test is not used; --config.data.eval_split=test evaluates on it"]
    assert unused_splits(str(root), f"{root}/train") == expected
    assert sibling_splits(f"{root}/train") == [f"{root}/test is not used; --config.data.path={root} uses both"]
    assert sibling_splits(f"{root}/other") == []
