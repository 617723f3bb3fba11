import numpy as np
import pytest
from PIL import Image

from deit_jax.config import ConfigError
from deit_jax.data.registry import open_source
from deit_jax.modes.preview import operation_names, preview, stages
from deit_jax.training.first_images import mixture
from deit_jax.training.step import step_keys
from tests.augment.table_9 import table_9
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


def test_a_picture_is_written(tmp_path):
    preview(tiny_config(), tmp_path / "deep" / "a.png", rows=3)
    picture = Image.open(tmp_path / "deep" / "a.png")
    assert picture.width > 900 and picture.height > 600
    assert len(np.unique(np.asarray(picture.convert("L")))) > 100
    with pytest.raises(ConfigError, match=r"a preview must end in \.png"):
        preview(tiny_config(), tmp_path / "a.txt")
