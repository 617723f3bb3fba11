"""Loader processes pass images through shared memory, of which a container has little."""

import pytest

from deit_jax.data import shared_memory
from deit_jax.data.decoding import CenterCrop
from deit_jax.data.loading import eval_batches
from deit_jax.data.registry import open_source
from deit_jax.data.sources import DataError
from tests.reliability.small_disk import fill, small_disk
from tests.tiny import tiny_config


def batches(**options):
    config = tiny_config(data__max_eval_images=512)
    return eval_batches(open_source(config.data, "eval"), CenterCrop(28, 1.0), 128, **options)


def test_workers_raise_if_their_batches_do_not_fit(tmp_path, monkeypatch):
    # 64 images of 28 pixels are 150 kB; a worker that reads two batches of two such chunks ahead keeps ten chunks at most, and
    # there are eight.
    with small_disk(tmp_path / "shm", megabytes=1.2) as shm:
        monkeypatch.setattr(shared_memory, "FOLDER", str(shm))
        with pytest.raises(
            DataError, match=rf"num_workers=1 needs 1\.5 MB.* {shm} has 1\.3 MB free: .*--shm-size=8g.*=0"
        ):
            batches(num_workers=1)
        assert sum(batch["mask"].sum() for batch in batches(num_workers=0)) == 512
        fill(shm)
        with pytest.raises(DataError, match=r"has 0\.0 MB free"):
            batches(num_workers=2)
    with small_disk(tmp_path / "more", megabytes=1.6) as shm:
        monkeypatch.setattr(shared_memory, "FOLDER", str(shm))
        batches(num_workers=1)


def test_a_system_without_visible_shared_memory_is_not_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory, "FOLDER", str(tmp_path / "nothing"))
    batches(num_workers=1)
