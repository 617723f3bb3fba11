import os
import pickle

import pytest

from deit_jax.data import folder
from deit_jax.data.folder import ImageFolderSource
from deit_jax.data.folder_listing import class_folders
from deit_jax.data.sources import DataError
from tests.data.trees import files_of, grow


@pytest.fixture
def root(tmp_path):
    return grow(tmp_path / "top" / "photos", "ant/1.jpg", "ant/2.png", "bee/1.jpg")


def opened(root):
    return ImageFolderSource(root, index="")


def test_leftovers_of_systems_and_editors_are_skipped(root):
    grow(root, ".git/objects/1.png", "__MACOSX/ant/._1.jpg", "@eaDir/1.jpg", ".ipynb_checkpoints/", "Thumbs.db", "labels.csv",
         "ant/.ipynb_checkpoints/1-checkpoint.jpg", "ant/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "ant/._1.jpg", "ant/1.jpg~",
         "bee/3.heic", "bee/4.HEIC", "bee/notes.txt")  # fmt: skip
    source = opened(root)
    assert source.class_names == ("ant", "bee") == class_folders(root)
    assert files_of(source, root) == ["ant/1.jpg", "ant/2.png", "bee/1.jpg"]
    (note,) = source.notes
    assert note.startswith(f"skipped in {root}: 7 files: 2 .heic (convert them to JPEG")
    assert (
        "2 left by a system, an editor or a download" in note
        and "1 .csv" in note
        and "1 .txt" in note
        and "1 hidden;" in note
    )
    assert note.endswith("3 folders of an operating system, 3 hidden folders")
    assert pickle.loads(pickle.dumps(source)).notes == source.notes


def test_no_note_if_nothing_is_skipped(root):
    assert opened(root).notes == ()


def test_images_outside_class_folders_are_counted(root):
    grow(root, "loose.jpg", "other.png")
    assert opened(root).notes == (f"2 images are directly in {root}, outside the class folders, and are not used",)


def test_links_to_folders_above_are_skipped(root):
    (root / "ant" / "again").symlink_to(root / "ant")
    (root / "ant" / "up").symlink_to("..")
    (root / "bee" / "top").symlink_to(root.parent)
    (root / "all").symlink_to(".")
    (root / "bee" / "loop.jpg").symlink_to("loop.jpg")
    source = opened(root)
    assert source.class_names == ("ant", "bee") and len(source) == 3
    (note,) = source.notes
    assert "1 file: 1 broken link" in note
    assert "3 links to a folder above" in note and "1 link to a folder that is listed already" in note


def test_folder_reached_twice_is_listed_once_at_its_real_place(root, tmp_path):
    grow(root, "bee/z/5.jpg")
    (root / "bee" / "a").symlink_to("z")
    elsewhere = grow(tmp_path / "elsewhere", "6.jpg", "deep/7.jpg")
    (root / "bee" / "m").symlink_to(elsewhere)
    (root / "bee" / "n").symlink_to(elsewhere / "deep")
    source = opened(root)
    assert files_of(source, root)[2:] == ["bee/1.jpg", "bee/m/6.jpg", "bee/m/deep/7.jpg", "bee/z/5.jpg"]
    assert source.notes == (f"skipped in {root}: 2 links to a folder that is listed already",)


@pytest.mark.parametrize("link", ["wasp", "ant/more"])
def test_folder_in_two_classes_raises(root, link):
    (root / link).symlink_to(root / "bee")
    with pytest.raises(
        DataError, match=r"photos/.* and .*photos/.* are the same folder, by a link, in two classes: remove"
    ) as error:
        opened(root)
    assert "bee" in str(error.value) and link in str(error.value)


def test_classes_may_be_links(root, tmp_path):
    elsewhere = grow(tmp_path / "elsewhere", "wasps/1.jpg")
    (root / "wasp").symlink_to(elsewhere / "wasps")
    source = opened(root)
    assert source.class_names == ("ant", "bee", "wasp") and source.notes == ()
    assert source[3].image == (elsewhere / "wasps/1.jpg").read_bytes()


def test_links_to_files_are_read_and_counted_and_broken_ones_skipped(root, tmp_path):
    pool = grow(tmp_path / "pool", "8.jpg", "9.jpg")
    (root / "ant" / "8.jpg").symlink_to(pool / "8.jpg")
    (root / "ant" / "9.jpg").symlink_to(pool / "9.jpg")
    assert opened(root).notes == ()
    (root / "bee" / "8.jpg").symlink_to(pool / "8.jpg")
    (root / "bee" / "copy.jpg").symlink_to("1.jpg")
    (root / "bee" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    source = opened(root)
    assert len(source) == 7
    assert source.notes == (
        f"skipped in {root}: 1 file: 1 broken link",
        f"2 images of {root} are links to another image's file, 1 of them to an image in another class",
    )


def test_pipe_with_an_image_name_is_not_opened(root):
    os.mkfifo(root / "ant" / "pipe.jpg")
    source = opened(root)
    assert len(source) == 3 and "1 neither file nor folder" in source.notes[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_folder_is_reported(root):
    grow(root, "bee/closed/1.jpg")
    (root / "bee/closed").chmod(0)
    try:
        with pytest.raises(DataError, match=r"bee/closed: the folder cannot be read \(Permission denied\)"):
            opened(root)
    finally:
        (root / "bee/closed").chmod(0o700)


def test_class_with_only_skipped_files_reports_them(root):
    grow(root, "cat/1.heic", "cat/2.heic", "cat/list.txt")
    with pytest.raises(
        DataError, match=r"cat: a class folder without images .*, it has 2 \.heic \(convert .*\), 1 \.txt; add images"
    ):
        opened(root)


def test_non_utf8_file_names_are_read_and_class_names_raise(root):
    name = os.fsdecode(b"caf\xe9.jpg")
    grow(root / "bee", name)
    source = opened(root)
    assert source[3].image == (root / "bee" / name).read_bytes()
    source.describe(3).encode()
    assert source.describe(3).endswith(r"bee/caf\xe9.jpg")
    (root / "bee" / name).unlink()
    with pytest.raises(DataError, match=r"caf\\xe9\.jpg: no longer exists"):
        source[3]
    grow(root / os.fsdecode(b"m\xfccke"), "1.jpg")
    with pytest.raises(DataError, match=r"m\\xfccke: the name of a class is not UTF-8; rename the folder") as error:
        opened(root)
    str(error.value).encode()


def test_classes_that_look_the_same_raise(root):
    grow(root, "M\u00fccke/1.jpg", "Mu\u0308cke/1.jpg")
    with pytest.raises(DataError, match=r"'Mu\\u0308cke' and 'M\\xfccke' look the same"):
        opened(root)


def test_avif_raises_at_the_start_if_pillow_does_not_read_it(root, monkeypatch):
    grow(root, "bee/1.AVIF", "bee/avif.png")
    assert len(opened(root)) == 5
    monkeypatch.setattr(folder.Image, "registered_extensions", lambda: {".png": "PNG"})
    with pytest.raises(DataError, match=r"bee/1\.AVIF: this Pillow \(.*\) does not read AVIF; install Pillow 11\.3"):
        opened(root)


def test_notes_use_singular_and_plural(root):
    grow(root, "loose.jpg")
    os.symlink(next((root / "bee").iterdir()).resolve(), root / "bee" / "link.jpg")
    assert opened(root).notes == (
        f"1 image is directly in {root}, outside the class folders, and is not used",
        f"1 image of {root} is a link to another image's file",
    )
