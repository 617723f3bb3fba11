"""For a path with an unexpected layout, `open_source` raises one line with the option or the path that fits."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from deit_jax.config import default_config
from deit_jax.data.registry import open_extra_set, open_source
from deit_jax.data.sources import DataError, MissingDataError
from tests.data.trees import grow

CLASSES = [f"{name}/{number}.jpg" for name in ("elm", "oak") for number in range(3)]


def data(path, **fields):
    section = default_config().data
    section.update({"source": "folder", "path": str(path), "index": ""} | fields)
    return section


def refusal(path, split="train", kind=DataError, **fields):
    with pytest.raises(kind) as error:
        open_source(data(path, **fields), split)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(path), "DATA")


def within(folder):
    return [f"{folder}/{name}" for name in CLASSES]


@pytest.mark.parametrize("levels", ["trees", "archive/trees v2"])
@pytest.mark.parametrize("held_out", [0.0, 0.2])
def test_splits_in_an_extra_folder(tmp_path, levels, held_out):
    grow(tmp_path, *within(f"{levels}/train"), *within(f"{levels}/val"), "__MACOSX/trees/._1.jpg", ".DS_Store")
    path = f"DATA/{levels}" if " " not in levels else f"'DATA/{levels}'"
    for split in ("train", "eval"):
        assert refusal(tmp_path, split, held_out=held_out).endswith(f"set --config.data.path={path}")


def test_class_folders_in_an_extra_folder(tmp_path):
    grow(tmp_path, *within("archive/trees"))
    assert refusal(tmp_path, held_out=0.2) == (
        "DATA: only one class ('archive'), training needs two; are the classes one folder deeper, in DATA/archive/trees? Then "
        "set --config.data.path=DATA/archive/trees"
    )
    grow(tmp_path / "deep", "trees/elm/2019/1.jpg", "trees/oak/2020/1.jpg")
    assert "one folder deeper, in DATA/trees? Then set" in refusal(tmp_path / "deep", held_out=0.2)
    grow(tmp_path / "more", *within("train/trees"), *within("val/trees"))
    assert refusal(tmp_path / "more").endswith("in DATA/train/trees? Then move the folders in it up, into DATA/train")


@pytest.mark.parametrize("name", ["train", "TRAINING"])
def test_path_of_a_split(tmp_path, name):
    root = grow(tmp_path / "trees", *within(name), *within("val"))
    assert refusal(root / name).endswith(
        f"give the folder above, which holds the splits' folders: --config.data.path={root}"
    )
    source = open_source(data(root / name, held_out=0.5), "eval")  # this may be intended, so it is only noted
    assert source.notes == (f"{root}/val is not used; --config.data.path={root} uses both",)


def test_path_of_a_class(tmp_path):
    root = grow(tmp_path / "trees", *within("train"), *within("val"))
    assert refusal(root / "train/oak").endswith(f"holds the images of one class: set --config.data.path={root}")
    assert refusal(root / "train/oak", held_out=0.2).endswith(
        f"if DATA is one class of several, set --config.data.path={root}"
    )
    root = grow(tmp_path / "flat", *CLASSES)
    assert refusal(root / "elm", held_out=0.2) == (
        "DATA: 3 images and no class folders; put the images of each class in its own folder, or if DATA is one class of "
        f"several, set --config.data.path={root}"
    )


def test_images_without_class_folders(tmp_path):
    root = grow(tmp_path / "all", "1.jpg", "2.jpg", ".thumbnails/1.jpg")
    assert (
        refusal(root, held_out=0.2)
        == "DATA: 2 images and no class folders; put the images of each class in its own folder"
    )
    assert "DATA holds 2 images outside class folders" in refusal(root, kind=MissingDataError)
    assert "DATA holds nothing" in refusal(grow(tmp_path, "none/.git/") / "none", kind=MissingDataError)


def test_class_folders_without_splits(tmp_path):
    grow(tmp_path, *CLASSES)
    for split in ("train", "eval"):
        words = refusal(tmp_path, split, kind=MissingDataError)
        assert "DATA holds class folders (elm, oak): add --config.data.held_out=0.2" in words


def test_missing_evaluation_folder(tmp_path):
    grow(tmp_path, *within("train"), *within("valid"), *within("extra"))
    words = refusal(tmp_path, "eval", eval_split="val", kind=MissingDataError)
    assert words == (
        "DATA/val: no such folder; DATA holds extra, train, valid: set --config.data.eval_split to one of these folders, or add "
        "--config.data.held_out=0.2 to evaluate on a fifth of the training images"
    )


def test_one_class(tmp_path):
    grow(
        tmp_path,
        "trees/oak/1.jpg",
        "trees/oak/2.jpg",
        "flat/elm/twigs/1.jpg",
        "flat/elm/twigs/2.jpg",
        "flat/oak/1.jpg",
        "flat/elm/2.jpg",
    )
    assert refusal(tmp_path / "trees", held_out=0.2) == (
        "DATA: only one class ('oak'), training needs two; put each class in its own folder, and set data.path to the "
        "folder that holds them"
    )
    assert "only one class ('twigs'), training needs two; if DATA is itself a class, set" in refusal(
        tmp_path / "flat/elm", held_out=0.2
    )
    np.savez(tmp_path / "a.npz", train_images=np.ones((2, 4, 4), np.uint8), train_labels=[0, 0], class_names=["only"])
    assert (
        refusal(tmp_path / "a.npz", source="npz")
        == "DATA: only one class ('only'), training needs two; add images of a second class"
    )


def test_one_class_can_be_evaluated(tmp_path):
    grow(tmp_path, *within("train"), "val/oak/1.jpg")
    assert open_extra_set(ConfigDict({"source": "folder", "path": str(tmp_path), "split": "val"}), "").class_names == (
        "oak",
    )


def test_archives_arrays_and_other_files(tmp_path):
    for name in ("trees.zip", "trees.TAR.GZ", "trees.npz", "trees.jpg", "in/a.zip", "in/.x", "arrays/it.npz"):
        grow(tmp_path, name)
    assert (
        refusal(tmp_path / "trees.zip")
        == "DATA is an archive: unpack it, and set --config.data.path to the folder with the images"
    )
    assert "is an archive" in refusal(tmp_path / "trees.TAR.GZ", held_out=0.2)
    assert refusal(tmp_path / "trees.npz").startswith("add --config.data.source=npz: DATA is a file of arrays")
    assert "DATA is a file: set --config.data.path" in refusal(tmp_path / "trees.jpg")
    assert "DATA holds the archive a.zip and no folders of images: unpack it" in refusal(tmp_path / "in", held_out=0.2)
    assert refusal(tmp_path / "arrays").startswith("add --config.data.source=npz and --config.data.path=DATA/it.npz: ")
    for source in ("npz", "tfds"):
        assert "is an archive: unpack it" in refusal(tmp_path / "trees.zip", source=source, name="mnist")
    grow(tmp_path, "nowhere/")
    assert "DATA is a folder: set --config.data.path to the .npz file" in refusal(tmp_path / "nowhere", source="npz")


@pytest.mark.parametrize("source", ["tfds", "npz"])
def test_image_folders_with_another_source(tmp_path, source):
    grow(tmp_path, *within("imagenet/train"), *within("imagenet/val"))
    what = {"tfds": "the TFDS data set imagenet2012", "npz": "a .npz file"}[source]
    fields = {"source": source, "name": "imagenet2012"}
    assert refusal(tmp_path / "imagenet", **fields) == (
        f"add --config.data.source=folder: DATA holds folders of images (train, val), not {what}"
    )
    assert refusal(tmp_path, **fields).startswith(
        "add --config.data.source=folder and --config.data.path=DATA/imagenet: "
    )
    grow(tmp_path / "flat", *CLASSES)
    assert refusal(tmp_path / "flat", **fields).startswith(
        "add --config.data.source=folder and --config.data.held_out=0.2: DATA"
    )
    entry = ConfigDict({"source": source, "name": "imagenet2012", "path": str(tmp_path / "imagenet"), "split": "val"})
    with pytest.raises(DataError, match=r"^add source=folder: "):
        open_extra_set(entry)


@pytest.mark.parametrize(
    ("files", "path", "flags"),
    [
        ("pets/1.0.0", "", "name=pets"),
        ("pets/small/1.0.0", "", "name=pets/small"),
        ("pets/1.0.0", "pets", "name=pets and --config.data.path=PARENT"),
        ("pets/1.0.0", "pets/1.0.0", "name=pets and --config.data.path=PARENT"),
    ],
)
def test_tfds_data_with_source_folder(tmp_path, files, path, flags):
    grow(tmp_path, f"{files}/features.json", f"{files}/pets-train.array_record-00000-of-00001")
    for held_out in (0.0, 0.2):
        words = refusal(tmp_path / path, held_out=held_out).replace("DATA", str(tmp_path / path))
        assert (
            words
            == f"add --config.data.source=tfds, --config.data.{flags}: {tmp_path / path} holds TFDS data".replace(
                "PARENT", str(tmp_path)
            )
        )


def test_empty_split_raises(tmp_path):
    for split, field in (("train", "train_split"), ("eval", "eval_split")):
        with pytest.raises(DataError, match=r"is empty; give other bounds"):
            open_source(data(grow(tmp_path, *within("train"), *within("val")), **{field: "train[6:]"}), split)


def test_classes_with_one_image(tmp_path):
    root = grow(tmp_path, "elm/1.jpg", "oak/1.jpg")
    for split in ("train", "eval"):
        assert refusal(root, split, held_out=0.2).startswith(
            "DATA: data.held_out=0.2 leaves no image for evaluation: each class has one image; add images, or a folder `val`"
        )
    grow(root, "oak/2.jpg")
    sources = [open_source(data(root, held_out=0.2), split) for split in ("train", "eval")]
    assert [len(source) for source in sources] == [2, 1]
    for source in sources:
        assert source.notes == ("1 of 2 classes have one image, which is used for training and not held out",)


def test_shards_and_other_sources(tmp_path):
    for name in ("packed/train/0.tar", "packed/val/0.tar", "table/train-00000-of-00001.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert refusal(tmp_path / "packed") == (
        "add --config.data.source=tar: DATA holds shards (DATA/train/0.tar), not folders of images"
    )
    assert refusal(tmp_path / "table", held_out=0.2).startswith("add --config.data.source=parquet: DATA holds shards")
    assert refusal(tmp_path / "packed/val/0.tar").startswith(
        "DATA is a file with images: add --config.data.source=tar, or"
    )
    grow(tmp_path, *within("trees/train"), *within("trees/val"))
    for source in ("tar", "parquet"):
        assert refusal(tmp_path / "trees", kind=MissingDataError, source=source) == (
            f"add --config.data.source=folder: DATA holds folders of images (train, val), not .{source} files"
        )
    assert refusal("gs://bucket/trees").startswith("DATA: class folders are read only from a disk; pack them as tar")
