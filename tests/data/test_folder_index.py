import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_jax.data import folder
from deit_jax.data.folder import ImageFolderSource, index_paths
from deit_jax.data.sources import DataError


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Folders that were last changed an hour ago; the user's cache folder is the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
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
    """How often the files were listed."""
    calls, list_files = [], folder._list_files
    monkeypatch.setattr(folder, "_list_files", lambda *arguments: calls.append(1) or list_files(*arguments))
    return calls


def contents(source):
    return source.class_names, [(source.describe(i), source[i].label, source[i].image) for i in range(len(source))]


def test_the_second_start_does_not_list_the_files(root, listings):
    first = contents(ImageFolderSource(root))
    assert (root / ".deit_jax_index.npz").is_file() and len(listings) == 1
    assert contents(ImageFolderSource(root)) == first and len(listings) == 1
    assert [Path(name).name for name, *_ in first[1]] == ["ä 4.png", "3.png", "1.png", "2.png"]
    assert contents(ImageFolderSource(root, use_index=False)) == first and len(listings) == 2


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
def test_a_change_makes_the_index_stale(root, listings, change):
    ImageFolderSource(root)
    change(root)
    source = ImageFolderSource(root)
    assert len(listings) == 2
    assert contents(source) == contents(ImageFolderSource(root, use_index=False))


def test_changed_bytes_are_read_without_a_new_listing(root, listings):
    ImageFolderSource(root)
    (root / "b/1.png").write_bytes(b"other")
    assert ImageFolderSource(root)[2].image == b"other" and len(listings) == 1


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 nonsense", None])
def test_a_damaged_index_is_made_anew(root, listings, damage):
    path = root / ".deit_jax_index.npz"
    expected = contents(ImageFolderSource(root))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert contents(ImageFolderSource(root)) == expected and len(listings) == 2
    assert contents(ImageFolderSource(root)) == expected and len(listings) == 2  # whole again


def test_an_index_of_another_layout_is_ignored(root, listings):
    path = root / ".deit_jax_index.npz"
    ImageFolderSource(root)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "version": 99})
    ImageFolderSource(root)
    np.savez(path, **{**arrays, "ends": arrays["ends"][:-1]})
    assert len(ImageFolderSource(root)) == 4
    assert len(listings) == 3


def test_where_the_folder_cannot_be_written_the_users_cache_holds_the_index(root, listings, monkeypatch):
    inside, in_cache = index_paths(root)
    make = folder.tempfile.mkstemp

    def refuse(dir, **options):
        if dir == inside.parent:
            raise PermissionError(13, "Permission denied")
        return make(dir=dir, **options)

    monkeypatch.setattr(folder.tempfile, "mkstemp", refuse)
    expected = contents(ImageFolderSource(root))
    assert in_cache.is_file() and not inside.exists()
    assert contents(ImageFolderSource(root)) == expected and len(listings) == 1
    in_cache.unlink()
    monkeypatch.setattr(folder.tempfile, "mkstemp", lambda **_: (_ for _ in ()).throw(OSError(28, "No space")))
    assert contents(ImageFolderSource(root)) == expected  # nowhere: no matter


def test_folders_in_the_making_are_not_indexed(root, listings):
    settle(root, seconds_ago=0.5)  # a file added now might leave the modification time as it is
    ImageFolderSource(root)
    assert not any(path.exists() for path in index_paths(root))


def test_an_empty_class_is_refused_with_and_without_an_index(root):
    (root / "empty").mkdir()
    settle(root)
    for _ in range(2):
        with pytest.raises(DataError, match="empty: a class folder without images"):
            ImageFolderSource(root)
