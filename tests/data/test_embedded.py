import gzip

import numpy as np
import pytest

from benchmarks import embedded_data
from deit_jax.data.registry import EMBEDDED
from deit_jax.data.sources import ArraySource, DataError


def write_idx(path, array, magic):
    header = magic.to_bytes(4, "big") + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), 1))


def make_images(labels, tag):
    """Images whose first pixels encode index (two bytes), label and file."""
    images = np.zeros((len(labels), 28, 28), np.uint8)
    index = np.arange(len(labels))
    images[:, 0, 0], images[:, 0, 1], images[:, 0, 2], images[:, 0, 3] = index >> 8, index & 255, labels, tag
    return images


@pytest.fixture(scope="module")
def idx(tmp_path_factory):
    folder = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(0)
    for name, per_class, tag in (("train", 1550, 1), ("t10k", 230, 2)):
        labels = rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), per_class))
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", make_images(labels, tag), 2051)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels, 2049)
    return folder


@pytest.fixture(scope="module")
def subsets(idx, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    for subset in embedded_data.SUBSETS:
        embedded_data.main([f"--idx={idx}", f"--output={folder / subset}.npz", f"--subset={subset}"])
    return {subset: dict(np.load(folder / f"{subset}.npz")) for subset in embedded_data.SUBSETS}, folder


def identity(images):
    return {(int(i[0, 3]), int(i[0, 0]) << 8 | int(i[0, 1])) for i in images}


def test_subsets(subsets):
    files, _ = subsets
    trained = {subset: 1000 for subset in files} | {"teacher": 1550, "teacher_heldout": 1050}
    tested = {"embedded": 200, "heldout": 500, "full_test": 230, "teacher": 230, "teacher_heldout": 500}
    train = files["embedded"]["train_images"]
    for subset, file in files.items():
        assert np.bincount(file["train_labels"]).tolist() == [trained[subset]] * 10
        assert np.bincount(file["test_labels"]).tolist() == [tested[subset]] * 10
        if subset.startswith("teacher"):
            assert identity(train) < identity(file["train_images"])
        else:
            np.testing.assert_array_equal(file["train_images"], train)
        for part in ("train", "test"):  # labels belong to their images
            np.testing.assert_array_equal(file[f"{part}_images"][:, 0, 2], file[f"{part}_labels"])
        assert len(identity(file["test_images"])) == 10 * tested[subset]
        assert not identity(file["train_images"]) & identity(file["test_images"])
        from_file = 1 if subset.endswith("heldout") else 2
        assert (file["test_images"][:, 0, 3] == from_file).all()
    assert identity(files["embedded"]["test_images"]) < identity(files["full_test"]["test_images"])
    assert identity(files["teacher_heldout"]["test_images"]) == identity(files["heldout"]["test_images"])


def test_subsets_open_as_npz_sources_like_the_embedded_one(subsets):
    _, folder = subsets
    for split in ("train", "eval"):
        assert ArraySource.from_npz(folder / "heldout.npz", split).class_names == embedded_data.CLASS_NAMES
        assert ArraySource.from_npz(EMBEDDED, split).class_names == embedded_data.CLASS_NAMES


def test_license_is_included():
    notice = (EMBEDDED.parent / "LICENSE.fashion_mnist").read_text()
    assert "Zalando" in notice and "Permission is hereby granted" in notice


def test_invalid_idx_files_raise(tmp_path, capsys):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    with pytest.raises(DataError, match=r"idx3-ubyte\.gz: cannot be read"):
        embedded_data.read_idx(path, 2051)
    path.write_bytes(b"plain")
    with pytest.raises(DataError, match="cannot be read as gzip"):
        embedded_data.read_idx(path, 2051)
    write_idx(path, np.zeros((3, 4, 4), np.uint8), 2051)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="cannot be read as gzip"):
        embedded_data.read_idx(path, 2051)
    write_idx(path, np.zeros(3, np.uint8), 2049)
    with pytest.raises(DataError, match="starts with 2049, but an IDX file of this kind starts with 2051"):
        embedded_data.read_idx(path, 2051)
    path.write_bytes(gzip.compress((2051).to_bytes(4, "big") + bytes(20)))
    with pytest.raises(DataError, match=r"8 bytes of data for the shape \[0, 0, 0\]"):
        embedded_data.read_idx(path, 2051)
    with pytest.raises(SystemExit) as stop:
        embedded_data.main([f"--idx={tmp_path}", f"--output={tmp_path / 'o.npz'}"])
    assert stop.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_too_few_images_per_class_raise():
    with pytest.raises(DataError, match="class 0 has 2 images, 3 are needed"):
        embedded_data.balanced_indices(np.repeat(np.arange(10), 2), (1, 2), stream=0)
