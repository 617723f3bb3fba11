import numpy as np
import pytest

from deit_jax.config import ConfigError
from deit_jax.data.registry import open_source
from deit_jax.data.shard_writing import Settings
from deit_jax.modes.prepare import prepare_images
from tests.tiny import tiny_config


@pytest.fixture
def images(tmp_path):
    """The configuration of a few images in a file; the reading options are at their defaults."""
    pixels = np.random.default_rng(0).integers(0, 255, (12, 28, 28), dtype=np.uint8)
    names = np.asarray(["a", "b"])
    np.savez(tmp_path / "few.npz", train_images=pixels, train_labels=np.arange(12) % 2, test_images=pixels[:3],
             test_labels=np.arange(3) % 2, class_names=names)  # fmt: skip
    config = tiny_config(data__source="npz", data__path=str(tmp_path / "few.npz"))
    config.data.num_threads = None
    return config


@pytest.mark.parametrize("workers", ["auto", 0])
def test_both_splits_are_read_as_from_their_source(images, tmp_path, workers):
    images.data.num_workers = workers
    prepare_images(images, str(tmp_path / "out"), splits=["train", "validation"], settings=Settings(shard_images=5))
    prepared = tiny_config(data__source="array_record", data__path=str(tmp_path / "out"))
    for split, count in (("train", 12), ("eval", 3)):
        source, before = open_source(prepared.data, split), open_source(images.data, split)
        assert len(source) == count and source.class_names == before.class_names
        assert sorted(source[i].label for i in range(count)) == sorted(before[i].label for i in range(count))


def test_bad_settings_are_refused_before_anything_is_written(images, tmp_path):
    for settings in (Settings(shortest_side=0), Settings(quality=101), Settings(shard_images=0)):
        with pytest.raises(ConfigError, match="give "):
            prepare_images(images, str(tmp_path / "out"), splits=["train"], settings=settings)
    assert not (tmp_path / "out").exists()
