import pickle

import numpy as np
import pytest
from PIL import Image

from deit_jax.data.folder import ImageFolderSource
from deit_jax.data.identity import Identity, Images
from deit_jax.data.sources import ArraySource, Subset, digest, fingerprint_of


def folder(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
    return ImageFolderSource(root, index="")


NAMES = ("ant/1.png", "ant/2.png", "bee/1.png")


def test_fingerprint_of_a_folder_depends_on_file_names_only(tmp_path):
    first = folder(tmp_path / "a", NAMES)
    assert fingerprint_of(folder(tmp_path / "elsewhere/b", NAMES)) == fingerprint_of(first)
    others = [NAMES[:2] + ("bee/2.png",), (*NAMES, "bee/3.png"), ("ant/1.png", "bee/2.png", "bee/1.png")]
    prints = {fingerprint_of(folder(tmp_path / str(i), names)) for i, names in enumerate(others)}
    assert len(prints | {fingerprint_of(first)}) == 4
    assert fingerprint_of(pickle.loads(pickle.dumps(first))) == fingerprint_of(first)


def test_fingerprint_of_arrays_depends_on_pixels_and_labels():
    images, labels = np.zeros((4, 2, 2), np.uint8), np.array([0, 1, 0, 1])
    first = fingerprint_of(ArraySource(images, labels, ("a", "b")))
    assert fingerprint_of(ArraySource(images.copy(), labels.astype(np.int8), ("a", "b"))) == first
    changed = images.copy()
    changed[3, 1, 1] = 1
    assert fingerprint_of(ArraySource(changed, labels, ("a", "b"))) != first
    assert fingerprint_of(ArraySource(images, labels[::-1], ("a", "b"))) != first
    assert fingerprint_of(ArraySource(images.reshape(2, 2, 4)[:, :2, :2], labels[:2], ("a", "b"))) != first


def test_subsets_have_different_fingerprints():
    whole = ArraySource(np.zeros((4, 2, 2), np.uint8), np.zeros(4, int), ("a",))
    parts = [whole, Subset(whole, np.arange(2)), Subset(whole, np.arange(3)), Subset(whole, np.array([1, 0]))]
    assert len({fingerprint_of(part) for part in parts}) == 4


def test_source_without_fingerprint_is_compared_by_size():
    class Bare:
        class_names = ("a",)

        def __len__(self):
            return 3

    assert Images.of(Bare()) == Images(3, "") and fingerprint_of(Subset(Bare(), np.arange(2))) == ""
    assert Images(3, "").change({"images": 3, "digest": "ab"}, "images") is None
    assert Images(3, "").change({"images": 4, "digest": "ab"}, "images") == "4 images then, 3 now"


@pytest.mark.parametrize(
    "parts",
    [(b"ab", b"c"), (np.zeros(2, np.int32),), (np.zeros((2, 1), np.int32),), (np.zeros(2, np.uint32),), (np.zeros(0),)],
)
def test_digest_depends_on_lengths_shapes_and_dtypes(parts):
    others = [(b"a", b"bc"), (b"abc",), (np.zeros(2, np.int64),), (np.zeros((1, 2), np.int32),), (b"\0" * 8,)]
    assert digest(*parts) not in {digest(*other) for other in others}
    assert len(digest(*parts)) == 32 == len(digest(np.array(3, np.float32)))


def test_changes_show_both_numbers():
    then = Identity(("a", "b"), Images(1200, "1"), Images(50, "2")).record()
    now = Identity(("a", "b"), Images(1199, "3"), Images(50, "4"))
    assert now.other_images(then, evaluation=True) == [
        "1,200 training images then, 1,199 now",
        "50 evaluation images as before, but not the same ones",
    ]
    assert len(now.other_images(then, evaluation=False)) == 1
    assert now.other_images({}, evaluation=True) == []  # from a version that recorded none
    assert now.other_classes(then) is None and now.other_classes({}) is None
    assert Identity(("a", "c"), now.train, now.evaluation).other_classes(then) == "new: 'c'; missing: 'b'"
