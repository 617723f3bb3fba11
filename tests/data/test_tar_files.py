import bz2
import gzip
import tarfile

import pytest

from deit_jax.data.sources import DataError
from deit_jax.data.tar_files import CLS, FOLDER, JSON, list_tar
from tests.data.tars import pack

LONG = "a folder with a long name " * 5 + "/" + "x" * 90 + ".jpg"  # more than ustar's fields hold


def listed(path):
    found = list_tar(str(path))
    return [(*image, label) for image, label in zip(found.images, found.labels, strict=True)]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_tarfile_finds_them(tmp_path, format):
    names = ["./oak/1.jpg", "oak/" + "b" * 96 + ".png", "elm/ä ü.webp", "./elm/2.JPEG"]
    names += [] if format == tarfile.USTAR_FORMAT else [LONG]
    path = pack(tmp_path / "a.tar", {name: name.encode() * 9 for name in names} | {"again.jpg": "./oak/1.jpg"}, format)
    found = list_tar(str(path))
    with tarfile.open(path) as archive:
        files = [member for member in archive if member.isreg()]
    assert [image.name for image in found.images] == [*(name.removeprefix("./") for name in names), "again.jpg"]
    assert [image[1:] for image in found.images] == [(f.offset_data, f.size) for f in files] + [found.images[0][1:]]
    content = path.read_bytes()
    assert [content[at : at + size] for _, at, size in found.images[:-1]] == [name.encode() * 9 for name in names]


def test_numbers_that_octal_digits_cannot_hold(tmp_path):
    """GNU tar and tarfile write them in binary; such a file has more than 8 GiB, all but its ends a hole."""
    path = tmp_path / "large.tar"
    info = tarfile.TarInfo("a/large.bmp")
    info.size = 9 << 30
    with open(path, "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.seek(9 << 30, 1)
        file.write(tarfile.TarInfo("a/empty.jpg").tobuf() + bytes(1024))
    assert listed(path) == [("a/large.bmp", 512, 9 << 30, ""), ("a/empty.jpg", (9 << 30) + 1024, 0, "")]


def test_labels(tmp_path):
    members = {"1.jpg": b"j", "1.cls": b"7\n", "1.json": b'{"label": 3}', "2.cls": b"oak", "2.left.png": b"p"}
    members |= {
        "3.json": b'{"cls": "elm", "width": 5}',
        "3.jpg": b"j",
        "b.c.jpg": b"j",
        "b.c.cls": b"5",
        "d/4.jpg": b"j",
    }
    members |= {"5.jpg": b"j", "5.json": b'{"width": 5}', "d.d/6.jpg": b"j", "d.cls": b"9"}
    found = list_tar(str(pack(tmp_path / "a.tar", members)))
    by_name = {
        image.name: (kind, label) for image, kind, label in zip(found.images, found.kinds, found.labels, strict=True)
    }
    assert by_name == {
        "1.jpg": (CLS, "7"), "2.left.png": (CLS, "oak"), "3.jpg": (JSON, "elm"), "b.c.jpg": (CLS, "5"), "d/4.jpg": (FOLDER, ""),
        "5.jpg": (FOLDER, ""), "d.d/6.jpg": (FOLDER, ""),
    }  # fmt: skip


def test_other_files_are_counted(tmp_path):
    members = {"a/1.jpg": b"", "a/1.txt": b"", "a/.hidden.jpg": b"", "__MACOSX/a/._1.jpg": b"", "a/2.heic": b""}
    assert dict(list_tar(str(pack(tmp_path / "a.tar", members))).skipped) == {
        ".txt": 1, ".heic": 1, "hidden": 1, "folder of an operating system": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "content"),
    [(CLS, b""), (CLS, b"\xff\xfe")]
    + [
        (JSON, text)
        for text in (b'{"label": [1, 2]}', b'{"label": true}', b"{", b"3", b'{"cls": null}', b'{"cls": 0.5}')
    ],
)
def test_labels_that_are_neither_number_nor_name(tmp_path, kind, content):
    path = pack(tmp_path / "t.tar", {"a.jpg": b"", f"a{kind}": content})
    with pytest.raises(DataError, match=rf"a{kind} in .*t.tar: the label is not a number or a name"):
        list_tar(str(path))


def test_duplicates(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name in ("a/1.jpg", "a/2.jpg", "./a/1.jpg"):
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(DataError, match=r"t.tar: a/1.jpg is in it twice"):
        list_tar(str(tmp_path / "t.tar"))
    path = pack(tmp_path / "u.tar", {"1.left.jpg": b"", "1.right.jpg": b"", "1.cls": b"2"})
    with pytest.raises(DataError, match=r"the images 1.left.jpg and 1.right.jpg have one label, 1.cls"):
        list_tar(str(path))


def test_truncated_anywhere(tmp_path):
    path = pack(tmp_path / "t.tar", {"a/1.jpg": b"x" * 700, "a/2.jpg": b"y" * 100})
    whole = path.read_bytes()
    end = 512 + 1024 + 512 + 512  # of the last image
    assert len(whole) > end and len(listed(path)) == 2
    for length in (100, 511, 512, 600, 1535, 1536, 1700, 2048, 2100, end, end + 511):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"t.tar: is truncated"):
            list_tar(str(path))
    path.write_bytes(whole[: end + 512])  # one block of zeros is an end, though a short one
    assert len(listed(path)) == 2


def test_damaged_in_the_middle(tmp_path):
    path = pack(tmp_path / "t.tar", {"a/1.jpg": b"x" * 700, "a/2.jpg": b"y" * 100})
    content = bytearray(path.read_bytes())
    content[1536 + 3] ^= 1  # in the second name
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t.tar: is damaged at byte 1,536"):
        list_tar(str(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (gzip.compress, "compressed by gzip"), (bz2.compress, "compressed by bzip2"), (lambda _: b"PK\3\4" * 200, "a zip file"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\n" * 20, "pointer of Git LFS"), (lambda _: b"", "is truncated"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (lambda _: bytes(10240), "an empty tar file"), (lambda _: b"photo" * 300, "not a tar file"),
    ],
)  # fmt: skip
def test_not_a_tar_file(tmp_path, make, message):
    path = pack(tmp_path / "t.tar", {f"a/{i}.jpg": bytes(range(256)) * i for i in range(40)})
    path.write_bytes(make(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        list_tar(str(path))


def test_unreadable(tmp_path):
    with pytest.raises(DataError, match=r"none.tar: cannot be read \(No such file"):
        list_tar(str(tmp_path / "none.tar"))
