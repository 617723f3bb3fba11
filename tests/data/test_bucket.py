"""Shards in buckets of Google Cloud Storage and S3, by servers on loopback that answer as these do."""

import subprocess
import sys

import pytest

from deit_jax.config import default_config
from deit_jax.data import stored_files
from deit_jax.data.output_folder import OutputFolder
from deit_jax.data.preparing import Settings, prepare
from deit_jax.data.registry import open_source
from deit_jax.data.sources import DataError, MissingDataError
from tests.bucket_server import server
from tests.data.test_parquet import write_set
from tests.data.test_tar_shards import (
    assert_equal_batches,
    assert_reads_as,
    batches,
    photos,
    write_folder,
    write_shards,
)

pytestmark = pytest.mark.long


@pytest.fixture(scope="module", params=["gs", "s3"])
def bucket(request):
    """The address of an empty bucket, and its file system; skipped without the packages of `pip install '.[peers]'`."""
    with server(scheme := request.param):
        stored_files.filesystem.cache_clear()
        files = stored_files.filesystem(scheme)
        files.mkdir("bucket")
        yield f"{scheme}://bucket", files
    stored_files.filesystem.cache_clear()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/deit_jax/copies"


def opened(source, path, **fields):
    data = default_config().data
    data.update({"source": source, "path": str(path), "index": ""} | fields)
    return open_source(data, "train")


@pytest.mark.parametrize("kind", ["tar", "parquet", "array_record"])
def test_three_epochs_equal_the_folders(bucket, cache, tmp_path, kind):
    address, files = bucket
    address = f"{address}/{kind}"
    write_folder(tmp_path / "folder/train", photos())
    folder = opened("folder", tmp_path / "folder")
    if kind == "tar":
        write_shards(tmp_path / "up", photos(), "folder")
    elif kind == "array_record":
        prepare({"train": folder}, OutputFolder(str(tmp_path / "up")), Settings(shard_images=10), origin={})
    else:
        write_set(tmp_path / "up", {folder.relative_path(i): folder[i].image for i in range(len(folder))}, "hub")
    for path in (tmp_path / "up").iterdir():
        files.put_file(str(path), f"{address}/{path.name}")
    expected = batches(folder)
    uncopied = opened(kind, address, copies_gib=0.0)
    assert_equal_batches(batches(uncopied), expected)
    assert_equal_batches(batches(uncopied, stop=4, num_workers=2), expected[:4])
    assert not cache.exists()
    source = opened(kind, address)
    assert_reads_as(source, expected)
    assert_equal_batches(batches(source, stop=4, num_workers=2), expected[:4])
    assert list(cache.glob("*/*.blocks"))
    files.rm(address, recursive=True)
    assert_equal_batches(batches(source, stop=4), expected[:4])  # from the copies alone
    with pytest.raises(MissingDataError, match=rf"{address}: no \.{kind} files there"):
        files.invalidate_cache()
        opened(kind, address)


def test_prepared_in_the_bucket(bucket, tmp_path, capsys):
    """Written there, continued after an interruption, verified, repaired and read."""
    address, files = bucket
    write_folder(tmp_path / "folder/train", photos())
    folder, out = opened("folder", tmp_path / "folder"), OutputFolder(f"{address}/prepared")

    class Interrupted:
        class_names, fingerprint, relative_path = folder.class_names, folder.fingerprint, folder.relative_path

        def __len__(self):
            return len(folder)

        def __getitem__(self, index):
            if index == 25:
                raise KeyboardInterrupt
            return folder[index]

    with pytest.raises(KeyboardInterrupt):
        prepare({"train": Interrupted()}, out, Settings(shard_images=10), origin={})
    prepare({"train": folder}, out, Settings(shard_images=10), origin={})
    assert f"2 of 4 shards in {out} are finished and undamaged" in capsys.readouterr().out
    assert_reads_as(opened("array_record", out.root), batches(folder))
    assert not {"parts", "preparation.json"} & set(out.names())
    files.pipe_file(f"{out.root}/train-00001-of-00004.array_record", b"damaged")
    prepare({"train": folder}, out, Settings(shard_images=10), origin={})
    assert "was damaged or missing, and is written again" in capsys.readouterr().out
    files.invalidate_cache()
    assert_equal_batches(batches(opened("array_record", out.root, copies_gib=0.0), stop=4), batches(folder, stop=4))


def test_a_shard_that_disappears(bucket, tmp_path):
    address, files = bucket
    write_shards(tmp_path / "up", photos(), "folder", shards=1)
    files.put_file(str(tmp_path / "up/it-train-00.tar"), f"{address}/gone/it-train-00.tar")
    source = opened("tar", f"{address}/gone", copies_gib=0.0)
    files.rm(f"{address}/gone/it-train-00.tar")
    with pytest.raises(DataError, match=rf"^ash/.* in {address}/gone/it-train-00.tar: cannot be read \("):
        source[0]


def test_a_bucket_that_does_not_exist(bucket):
    address = bucket[0].replace("bucket", "nothing") + "/data"
    with pytest.raises(DataError, match=f"^{address}: "):
        opened("tar", address)


PREPARE = """
import io, sys
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

def examples():
    random = np.random.default_rng(0)
    for number in range(30):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)).save(file, "PNG")
        yield number, {"id": f"train_{number}", "image": io.BytesIO(file.getvalue()), "label": number % 10}

builder = tfds.builder_cls("cifar10")
builder._split_generators = lambda self, _: {"train": examples()}
builder(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


def test_tfds(bucket, tmp_path):
    """TFDS lists the files by etils, and array_record reads them, both from gs:// without any of our code."""
    address, files = bucket
    if not address.startswith("gs://"):
        pytest.skip("array_record reads only gs://")
    subprocess.run([sys.executable, "-c", PREPARE, tmp_path / "tfds"], check=True, capture_output=True)
    for path in (tmp_path / "tfds").rglob("*.*"):
        if path.is_file():
            files.put_file(str(path), f"{address}/tfds/{path.relative_to(tmp_path / 'tfds')}")
    local, source = (opened("tfds", path, name="cifar10") for path in (tmp_path / "tfds", f"{address}/tfds"))
    assert len(source) == 30 and source.fingerprint() == local.fingerprint()
    expected = batches(local)
    assert_equal_batches(batches(source), expected)
    assert_equal_batches(batches(source, stop=4, num_workers=2), expected[:4])
