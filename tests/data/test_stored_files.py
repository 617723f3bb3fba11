"""Files in a bucket: fsspec's file system in memory takes its place; tests/data/test_bucket.py has a server's."""

import os
import pickle

import fsspec
import numpy as np
import pytest

from deit_jax.config import default_config
from deit_jax.data import stored_files
from deit_jax.data.registry import open_source
from deit_jax.data.shards import find_shards
from deit_jax.data.sources import DataError, MissingDataError
from tests.data.test_parquet import write_set
from tests.data.test_tar_shards import assert_equal_batches, batches, photos, write_folder, write_shards


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Uploads a folder to memory://bucket; counts the requests for content."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(stored_files, "PACKAGES", {"memory": "fsspec"})
    monkeypatch.setattr(stored_files, "_BLOCK", 1000)
    stored_files.filesystem.cache_clear()
    memory = fsspec.filesystem("memory")
    requests, cat_file = [], type(memory).cat_file

    def counted(self, path, start=None, end=None, **settings):
        requests.append((path, start, end))
        return cat_file(self, path, start=start, end=end, **settings)

    monkeypatch.setattr(type(memory), "cat_file", counted)

    class Bucket:
        def put(self, folder):
            for path in folder.iterdir():
                memory.put_file(str(path), f"memory://bucket/data/{path.name}")
            return "memory://bucket/data"

        def requests(self):
            return [request for request in requests if not request[0].endswith(".txt")]

        def forget(self):
            requests.clear()

    yield Bucket()
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    stored_files.filesystem.cache_clear()


def opened(source, path, split="train", **fields):
    data = default_config().data
    data.update({"source": source, "path": str(path), "index": ""} | fields)
    return open_source(data, split)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("copies_gib", [0.0, 1.0, 20_000 / 2**30])
def test_the_same_images_as_the_folder(bucket, tmp_path, kind, copies_gib):
    write_folder(tmp_path / "folder/train", photos())
    folder = opened("folder", tmp_path / "folder")
    if kind == "tar":
        write_shards(tmp_path / "up", photos(), "cls")
        (tmp_path / "up/classnames.txt").write_text("\n".join(folder.class_names))
    else:
        write_set(tmp_path / "up", {folder.relative_path(i): folder[i].image for i in range(len(folder))}, "hub")
    source = opened(kind, bucket.put(tmp_path / "up"), copies_gib=copies_gib)
    assert source.class_names == folder.class_names
    assert_equal_batches(batches(source), batches(folder))
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[i] for i in range(len(copy))] == [folder[i] for i in range(len(folder))]
    blocks = list((tmp_path / "cache").rglob("*.blocks"))
    total = sum(path.stat().st_size for path in (tmp_path / "up").glob("*.*"))
    if copies_gib == 1:
        assert "all of" in source.notes[0] and blocks
        bucket.forget()
        again = pickle.loads(pickle.dumps(opened(kind, "memory://bucket/data", copies_gib=copies_gib)))
        assert [again[i] for i in range(len(again))] == [
            folder[i] for i in range(len(folder))
        ] and not bucket.requests()
    elif copies_gib:
        kept = sum(np.count_nonzero(np.fromfile(path, np.uint32)) for path in (tmp_path / "cache").rglob("*.checksums"))
        assert 10 <= kept <= 20 < total / 1000
    else:
        assert not blocks and "no copies are kept" in source.notes[0]


def test_shards_are_read_ahead_for_the_index(bucket, tmp_path):
    write_shards(tmp_path / "up", photos(), "folder")
    opened("tar", bucket.put(tmp_path / "up"), copies_gib=0.0)
    assert len(bucket.requests()) == 3  # one for each, not one for each image


def test_a_damaged_copy_and_a_changed_file_are_read_again(bucket, tmp_path):
    write_shards(tmp_path / "up", photos(), "folder")
    source = opened("tar", bucket.put(tmp_path / "up"))
    expected = [source[i] for i in range(len(source))]
    for path in (tmp_path / "cache").rglob("*.blocks"):
        content = bytearray(path.read_bytes())
        content[2500] ^= 1
        path.write_bytes(content)
    bucket.forget()
    source = opened("tar", "memory://bucket/data")
    assert [source[i] for i in range(len(source))] == expected and 0 < len(bucket.requests()) <= 6
    write_shards(tmp_path / "up", photos(seed=1), "folder")
    source = opened("tar", bucket.put(tmp_path / "up"))
    assert [source[i].image for i in range(len(source))] != [image for image, _ in expected]


def test_room_is_made_for_other_data(tmp_path):
    folder = tmp_path / "copies"
    for age, name in enumerate(("new", "old", "oldest")):
        (folder / name).mkdir(parents=True)
        (folder / name / "it.blocks").write_bytes(b"x" * 100_000)
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    stored_files.make_room(folder / "mine", 350_000, 120_000)
    assert sorted(path.name for path in folder.iterdir()) == ["mine", "new", "old"]
    stored_files.make_room(folder / "mine", 350_000, 350_000)
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_other_users_cannot_write_copies(bucket, tmp_path):
    before = os.umask(0o002)
    try:
        write_shards(tmp_path / "up", photos(), "folder")
        opened("tar", bucket.put(tmp_path / "up"))
        folders = [tmp_path / "cache/deit_jax", *(tmp_path / "cache/deit_jax").rglob("*")]
        assert len(folders) == 9 and not any(path.stat().st_mode & 0o022 for path in folders)
        (tmp_path / "cache/deit_jax").chmod(0o777)  # its content can no longer be trusted
        assert "no copies are kept" in opened("tar", "memory://bucket/data").notes[0]
    finally:
        os.umask(before)


def test_half_of_the_free_space_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(stored_files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3000}))
    assert stored_files.copies_of("gs://bucket/data", 2000, 10**9)[0] == 1500
    assert stored_files.copies_of("gs://bucket/data", 1000, 10**9)[0] == 1000
    assert stored_files.copies_of("gs://bucket/data", 1000, 500)[0] == 500


def test_names_and_patterns(bucket, tmp_path):
    write_shards(tmp_path / "up", photos(), "folder", shards=5)
    address = bucket.put(tmp_path / "up")
    names = [f"it-train-{number:02}.tar" for number in range(5)]
    assert list(find_shards(address, "train", ".tar").files) == names
    assert list(find_shards("memory://bucket", "train", ".tar").files) == [f"data/{name}" for name in names]
    assert list(find_shards(f"{address}/it-*-0[1-3].tar", "", ".tar").files) == names[1:4]
    assert list(find_shards(f"{address}/it-train-{{01..03}}.tar", "train", ".tar").files) == names[1:4]
    assert list(find_shards(f"{address}/it-train-03.tar", "train", ".tar").files) == names[3:4]
    fsspec.filesystem("memory").rm("/bucket/data/it-train-02.tar")
    for path, kind, message in (
        (address, DataError, "1 of 5 shards are missing, the first is it-train-02.tar"),
        (f"{address}/it-train-{{01..03}}.tar", MissingDataError, "it-train-02.tar: no such file, named by the pattern"),
        (f"{address}/none-*.tar", MissingDataError, "no .tar files there"),
        ("memory://none", MissingDataError, "no .tar files there"),
    ):
        with pytest.raises(kind, match=message):
            find_shards(path, "train", ".tar")


def test_other_schemes_and_packages(monkeypatch):
    stored_files.filesystem.cache_clear()
    with pytest.raises(
        DataError,
        match=r"^data.path: ftp:// cannot be read, only gs://, s3://, hf://: copy the files to a local folder$",
    ):
        opened("tar", "ftp://bucket/data")
    monkeypatch.setattr(fsspec, "filesystem", lambda scheme: (_ for _ in ()).throw(ImportError(f"Install {scheme}fs")))
    with pytest.raises(DataError, match=r"^data.path: gs:// needs the package gcsfs: pip install gcsfs$"):
        opened("parquet", "gs://bucket/data")


def test_a_failing_network_ends_with_one_line(bucket, tmp_path, monkeypatch):
    write_shards(tmp_path / "up", photos(), "folder")
    source = opened("tar", bucket.put(tmp_path / "up"), copies_gib=0.0)

    def fail(*_, **__):
        raise RuntimeError("403, no access\nand more")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", fail)
    with pytest.raises(
        DataError, match=r"^ash/.* in memory://bucket/data/it-train-0.\.tar: cannot be read \(403, no access\); "
    ):
        source[0]
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", fail)
    with pytest.raises(
        DataError, match=r"^memory://bucket/data: cannot be listed \(RuntimeError: 403, no access\); check"
    ):
        opened("tar", "memory://bucket/data")
