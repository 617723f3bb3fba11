import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_jax.data import folder, folder_index
from deit_jax.data.folder import ImageFolderSource
from deit_jax.data.folder_index import index_path
from deit_jax.data.sources import DataError


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Folders last changed an hour ago, with a cache folder for the test. Small folders are indexed too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(folder, "SMALLEST_INDEXED", 4)
    file = io.BytesIO()
    Image.new("RGB", (3, 2)).save(file, "PNG")
    for name in ("b/2.png", "b/1.png", "a/deep/3.png", "a/ä 4.png", "a/notes.txt"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue())
    settle(tmp_path / "train")
    return tmp_path / "train"


def settle(root, seconds_ago=3600):
    for path, _, _ in os.walk(root):
        os.utime(path, (time.time() - seconds_ago,) * 2)


@pytest.fixture
def listings(monkeypatch):
    """Records each listing of the files."""
    calls, list_files = [], folder.list_files
    monkeypatch.setattr(folder, "list_files", lambda *arguments: calls.append(1) or list_files(*arguments))
    return calls


def contents(source):
    return source.class_names, source.notes, [(source.describe(i), *source[i]) for i in range(len(source))]


def test_second_start_does_not_list_the_files(root, listings, tmp_path):
    first = contents(ImageFolderSource(root))
    (index,) = (tmp_path / "cache/deit_jax").iterdir()
    assert index == index_path(root, "auto") and len(listings) == 1
    assert sorted(path.name for path in root.iterdir()) == ["a", "b"]  # nothing is written to the data's folder
    assert contents(ImageFolderSource(root)) == first and len(listings) == 1
    assert [Path(name).name for name, *_ in first[2]] == ["ä 4.png", "3.png", "1.png", "2.png"]
    assert first[1] == (f"skipped in {root}: 1 file: 1 .txt",)


def test_index_can_be_disabled_or_placed_elsewhere(root, listings, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    first = contents(ImageFolderSource(root, index=""))
    assert contents(ImageFolderSource(root, index="")) == first and len(listings) == 2
    assert index_path(root, "") is None and not (tmp_path / "cache").exists()
    for place, where in (
        (str(tmp_path / "shared"), tmp_path / "shared"),
        ("~/lists", tmp_path / "home/lists"),
        (str(root), root),
    ):
        del listings[:]
        for _ in range(2):
            assert contents(ImageFolderSource(root, index=place)) == first
        assert len(listings) == 1 and len(list(where.glob("deit_jax_index_*.npz"))) == 1
        settle(root)
    assert not (tmp_path / "cache").exists()


def test_cache_folder_is_the_users_or_none(root, monkeypatch, tmp_path):
    for value in ("", "relative"):  # the XDG specification: relative paths are ignored
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        monkeypatch.setenv("HOME", "/home/ada")
        assert index_path(root, "auto").parent == Path("/home/ada/.cache/deit_jax")
    # A container user without a name and HOME: expanduser does not replace ~.
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(folder_index.os.path, "expanduser", lambda path: path)
    assert index_path(root, "auto") is None
    assert len(ImageFolderSource(root)) == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "b/2.png").unlink(),
        lambda root: (root / "a/deep/5.png").write_bytes(b""),
        lambda root: (root / "b/1.png").rename(root / "b/0.png"),
        lambda root: ((root / "c").mkdir(), (root / "c/1.png").write_bytes(b"")),
        lambda root: (root / "b").rename(root / "c"),
    ],
    ids=["removed", "added below", "renamed", "new class", "class renamed"],
)
def test_changes_invalidate_the_index(root, listings, change):
    ImageFolderSource(root)
    change(root)
    source = ImageFolderSource(root)
    assert len(listings) == 2
    assert contents(source) == contents(ImageFolderSource(root, index=""))


def test_changed_contents_are_read_without_a_new_listing(root, listings):
    ImageFolderSource(root)
    (root / "b/1.png").write_bytes(b"other")
    assert ImageFolderSource(root)[2].image == b"other" and len(listings) == 1


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 nonsense", None])
def test_damaged_index_is_replaced(root, listings, damage):
    path = index_path(root, "auto")
    expected = contents(ImageFolderSource(root))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert contents(ImageFolderSource(root)) == expected and len(listings) == 2
    assert contents(ImageFolderSource(root)) == expected and len(listings) == 2  # replaced


def test_index_with_another_layout_or_rules_is_ignored(root, listings):
    path = index_path(root, "auto")
    ImageFolderSource(root)
    with np.load(path) as file:
        arrays = dict(file)
    for change in (
        {"version": 99},
        {"ends": arrays["ends"][:-1]},
        {"rules": "('.jpg',)"},
        {"skipped": arrays["skipped"][:-1]},
    ):
        del listings[:]
        np.savez(path, **(arrays | change))
        assert len(ImageFolderSource(root)) == 4 and len(listings) == 1
        assert len(ImageFolderSource(root)) == 4 and len(listings) == 1


def test_index_of_earlier_versions_is_neither_read_nor_removed(root, listings):
    path = root / ".deit_jax_index.npz"
    path.write_bytes(b"names of files that are skipped today")
    settle(root)
    assert len(ImageFolderSource(root)) == 4 and len(listings) == 1 and path.exists()


@pytest.mark.parametrize("fault", ["mkdir", "mkstemp", "replace"])
def test_unwritable_index_is_ignored(root, listings, monkeypatch, fault, tmp_path):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    owner = {"mkdir": Path, "mkstemp": folder_index.tempfile, "replace": folder_index.os}[fault]
    with monkeypatch.context() as patch:
        patch.setattr(owner, fault, refuse)
        expected = contents(ImageFolderSource(root))
    assert not list(tmp_path.glob("cache/deit_jax/*"))
    assert contents(ImageFolderSource(root)) == expected and len(listings) == 2


def test_small_folders_are_not_indexed(root, listings, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "SMALLEST_INDEXED", 5)
    ImageFolderSource(root)
    assert not (tmp_path / "cache").exists()


def test_recently_changed_folders_are_not_indexed(root, listings):
    settle(root, seconds_ago=0.5)  # a file added now might not change the modification time
    ImageFolderSource(root)
    assert not index_path(root, "auto").exists()


def test_empty_class_raises_with_and_without_an_index(root):
    (root / "empty").mkdir()
    settle(root)
    for _ in range(2):
        with pytest.raises(DataError, match="empty: a class folder without images"):
            ImageFolderSource(root)
