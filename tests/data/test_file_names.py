import pytest

from deit_jax.data.file_names import (
    HIDDEN,
    HIDDEN_FOLDER,
    LEFTOVER,
    NO_EXTENSION,
    SYSTEM_FOLDER,
    describe_skipped,
    is_image,
    skipped_file,
    skipped_folder,
    skipped_note,
)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jpg", None), ("A.JPE", None), ("b.Jfif", None), ("c.avif", None), ("d.x.webp", None),
        ("é.TIFF", None), ("~.png", None),
        ("._a.jpg", HIDDEN), (".DS_Store", HIDDEN), (".png", HIDDEN),
        ("Thumbs.db", LEFTOVER), ("DESKTOP.INI", LEFTOVER), ("a.jpg~", LEFTOVER), (".a.jpg.swp", LEFTOVER),
        ("a.jpg.bak", LEFTOVER),
        ("a.jpg.crdownload", LEFTOVER), ("a.jpg.part", LEFTOVER), ("a.jpg:Zone.Identifier", LEFTOVER), ("~$a.jpg", LEFTOVER),
        ("a.HEIC", ".heic"), ("a.gif", ".gif"), ("labels.csv", ".csv"), ("a.tar.gz", ".gz"),
        ("README", NO_EXTENSION), ("jpg", NO_EXTENSION), ("a.", NO_EXTENSION), ("version 1.of a very long title", NO_EXTENSION),
        ("a.j\x1bpg", r".j\x1bpg"),
    ],
)  # fmt: skip
def test_skipped_file(name, kind):
    assert skipped_file(name) == kind
    assert is_image(name) == (kind is None)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cat", None), ("1", None), ("_rest", None), ("@home", None), ("lost", None), ("recycle.bin", None),
        (".git", HIDDEN_FOLDER), (".ipynb_checkpoints", HIDDEN_FOLDER), (".thumbnails", HIDDEN_FOLDER),
        (".Trash-1000", HIDDEN_FOLDER),
        ("__MACOSX", SYSTEM_FOLDER), ("@eaDir", SYSTEM_FOLDER), ("$RECYCLE.BIN", SYSTEM_FOLDER), ("lost+found", SYSTEM_FOLDER),
        ("System Volume Information", SYSTEM_FOLDER), ("#recycle", SYSTEM_FOLDER), ("__pycache__", SYSTEM_FOLDER),
    ],
)  # fmt: skip
def test_skipped_folder(name, kind):
    assert skipped_folder(name) == kind


def test_skipped_kinds_are_counted_and_unread_images_come_first():
    note = skipped_note("data/train", {".txt": 5, ".cr2": 2, HIDDEN: 1, SYSTEM_FOLDER: 2, HIDDEN_FOLDER: 1})
    assert note == (
        "skipped in data/train: 8 files: 2 .cr2 (camera raw: develop them to JPEG), 5 .txt, 1 hidden; "
        "2 folders of an operating system, 1 hidden folder"
    )
    assert skipped_note("d", {".heic": 1}).startswith(
        "skipped in d: 1 file: 1 .heic (convert them to JPEG: Pillow reads them only"
    )
    assert skipped_note("d", {}) == ""
    assert describe_skipped({f".{i}": 10 - i for i in range(9)}).endswith("5 .5, 9 others")
