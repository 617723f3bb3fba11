import io

import numpy as np
import pytest
from PIL import Image

from deit_jax.config import default_config
from deit_jax.data.imagenet_tars import KIT, TRAIN, VALIDATION
from deit_jax.data.registry import open_source
from deit_jax.data.sources import DataError
from tests.data.imagenet_files import SYNSETS, write_files
from tests.data.tars import pack
from tests.data.test_tar_shards import write_folder


def section(path, **fields):
    data = default_config().data
    data.update({"source": "imagenet_tars", "path": str(path), "index": ""} | fields)
    return data


def jpeg(value):
    file = io.BytesIO()
    Image.fromarray(np.full((9, 12, 3), value, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def contents():
    images = {
        f"{wnid}/{wnid}_{number}.JPEG": jpeg(20 * k + number)
        for k, wnid in enumerate(SYNSETS[:3])
        for number in (7, 31, 8)
    }
    return images, [(SYNSETS[k], jpeg(90 + i)) for i, k in enumerate((2, 0, 1, 1, 2))]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """DATA/tars, and DATA/folder with the same images unpacked."""
    root = tmp_path_factory.mktemp("imagenet")
    images, validation = contents()
    write_files(root / "tars", images, validation)
    write_folder(root / "folder/train", images)
    named = {f"{wnid}/ILSVRC2012_val_{i:08}.JPEG": content for i, (wnid, content) in enumerate(validation, 1)}
    write_folder(root / "folder/val", named)
    return root


@pytest.mark.parametrize("split", ["train", "eval"])
def test_same_images_as_the_unpacked_folders(root, split):
    source = open_source(section(root / "tars"), split)
    folder = open_source(section(root / "folder", source="folder"), split)
    assert source.class_names == folder.class_names == tuple(sorted(SYNSETS[:3]))
    assert [source[i] for i in range(len(source))] == [folder[i] for i in range(len(folder))]
    assert source.fingerprint() == folder.fingerprint()
    assert source.file_name(1) == folder.file_name(1)


def test_the_index_is_read_again(root, tmp_path, monkeypatch):
    monkeypatch.setattr("deit_jax.data.tar_index.SMALLEST_INDEXED", 1)
    monkeypatch.setattr("deit_jax.data.tar_index.SETTLED_SECONDS", -100.0)
    first = open_source(section(root / "tars", index=str(tmp_path)), "train")
    monkeypatch.setattr("deit_jax.data.imagenet_tars.list_tar", None)
    assert open_source(section(root / "tars", index=str(tmp_path)), "train")[4] == first[4]


def refusal(path, split="train", **fields):
    with pytest.raises(DataError) as error:
        open_source(section(path, **fields), split)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(path), "DATA")


def test_missing_files_and_splits(root, tmp_path):
    assert refusal(tmp_path).startswith(
        f"DATA/{TRAIN}: no such file; set --config.data.path to the folder of ImageNet's files"
    )
    assert "have no split 'test'" in refusal(root / "tars", "eval", eval_split="test")
    (tmp_path / VALIDATION).symlink_to(root / "tars" / VALIDATION)
    assert refusal(tmp_path, "eval") == f"DATA/{KIT}: no such file; download it too, it has the classes of {VALIDATION}"


def test_damaged_files(root, tmp_path):
    content = (root / "tars" / TRAIN).read_bytes()
    (tmp_path / TRAIN).write_bytes(content[: len(content) // 2])
    assert f"{TRAIN}: is truncated" in refusal(tmp_path)
    (tmp_path / TRAIN).write_bytes(content.replace(b"n01440764_31.JPEG", b"n01440764_XX.JPEG"))
    assert f"{TRAIN}/n01440764.tar: is damaged at byte" in refusal(tmp_path)
    pack(tmp_path / TRAIN, {"a.JPEG": b"x"})
    assert "has no tar file per class" in refusal(tmp_path)
    images, validation = contents()
    write_files(tmp_path / "fewer", images, validation)
    pack(tmp_path / "fewer" / VALIDATION, {"ILSVRC2012_val_00000001.JPEG": b"x"})
    assert "has 1 images" in refusal(tmp_path / "fewer", "eval")
    pack(tmp_path / "fewer" / VALIDATION, {"ILSVRC2012_val_00000009.JPEG": b"x"})
    assert "ILSVRC2012_val_00000009.JPEG in" in refusal(tmp_path / "fewer", "eval")
    (tmp_path / "fewer" / KIT).write_bytes(b"\x1f\x8b12345")
    assert "cannot be read from it" in refusal(tmp_path / "fewer", "eval")
