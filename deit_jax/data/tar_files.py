"""Reads the members of a tar file without unpacking it: where each image is, and its label.

Python's `tarfile` ends silently at a damaged header, and takes twice as long; ImageNet's shards have 3.8 million members.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from deit_jax.data.file_names import skipped_file, skipped_folder
from deit_jax.data.sources import DataError
from deit_jax.data.stored_files import LocalFile, StoredFile
from deit_jax.printable import printable

_BLOCK = 512
_READ = 3 * _BLOCK  # a header and a small file after it: labels take no second read
_MAX_LABEL = 1 << 20  # bytes
_LABEL_FIELDS = ("label", "cls")  # of .json
_NOT_TAR = {
    b"\x1f\x8b": "is compressed by gzip, which allows no random access: decompress it (gunzip)",
    b"BZ": "is compressed by bzip2, which allows no random access: decompress it (bunzip2)",
    b"\xfd7": "is compressed by xz, which allows no random access: decompress it (unxz)",
    b"(\xb5": "is compressed by zstd, which allows no random access: decompress it (unzstd)",
    b"PK": "is a zip file: unpack it, and use data.source=folder",
    b"ve": "is a pointer of Git LFS, not the file itself: download it (git lfs pull)",
}

# Kinds of members, POSIX's and GNU's.
_FILES = (b"0", b"\0", b"7")
_EMPTY = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices and folders
_HEADERS = (b"x", b"g", b"L", b"K")  # about the next member

# Where an image's label comes from.
CLS, JSON, FOLDER = ".cls", ".json", "folder"


class Member(NamedTuple):
    """A file within a tar file: its path without a leading "./", and where its content is."""

    name: str
    offset: int
    size: int


@dataclasses.dataclass
class TarListing:
    """The images of one tar file in stored order. The label of a FOLDER is ""; the caller takes it from the name."""

    images: list[Member] = dataclasses.field(default_factory=list)
    labels: list[str] = dataclasses.field(default_factory=list)
    kinds: list[str] = dataclasses.field(default_factory=list)  # CLS, JSON or FOLDER
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)


def list_tar(path: str, file: StoredFile | None = None, *, labelled: bool = True) -> TarListing:
    """Lists the images of a tar file and reads their labels.

    path: its path, or the name of `file` in messages. labelled: False: all images have the label of a folder.

    A label is the content of the image's `.cls` file, else the field `label` or `cls` of its `.json` file, else its folder. The
    files of an image have the same path up to the extension, or up to the first dot of the file's name.

    Raises:
        DataError: the file cannot be read, is not a tar file, is truncated or damaged; two images have the same name or label
            file; or a label is not a number or a name.
    """
    found = TarListing()
    texts: dict[tuple[str, str], tuple[Member, bytes]] = {}  # by kind and key
    seen = set[str]()
    for member, content in members_of(path, file):
        folder, _, name = member.name.rpartition("/")
        extension = os.path.splitext(name)[1].lower()
        kind = (
            next((each for each in map(skipped_folder, folder.split("/")) if each is not None), None)
            if folder
            else None
        )
        if kind is None and extension in (CLS, JSON) and not name.startswith("."):
            texts[extension, member.name[: -len(extension)]] = member, content
            continue
        kind = kind or skipped_file(name)
        if kind is not None:
            found.skipped[kind] += 1
            continue
        if member.name in seen:
            raise DataError(
                f"{printable(path)}: {printable(member.name)} is in it twice; pack it again without duplicates"
            )
        seen.add(member.name)
        found.images.append(member)
    users: dict[tuple[str, str], str] = {}
    for image in found.images:
        kind, key = _label_file(image.name, texts) if labelled else (FOLDER, "")
        label = "" if kind == FOLDER else _label(path, *texts[kind, key], kind)
        found.kinds.append(kind if label else FOLDER)
        found.labels.append(label)
        if not label:
            continue
        other = users.setdefault((kind, key), image.name)
        if other != image.name:
            raise DataError(
                f"{printable(path)}: the images {printable(other)} and {printable(image.name)} have one label, "
                f"{printable(key + kind)}; pack one image per key"
            )
    return found


def _label_file(name: str, texts: dict[tuple[str, str], tuple[Member, bytes]]) -> tuple[str, str]:
    """Returns the kind and the key of an image's label."""
    folder, slash, file = name.rpartition("/")
    keys = (os.path.splitext(name)[0], folder + slash + file.partition(".")[0])
    return next(((kind, key) for kind in (CLS, JSON) for key in keys if (kind, key) in texts), (FOLDER, ""))


def _label(path: str, member: Member, content: bytes, kind: str) -> str:
    """Reads a label; "" if a .json file has no field for it."""
    value: Any = None
    try:
        value = content.decode().strip()
        if kind == JSON:
            fields = json.loads(value)
            present = [field for field in _LABEL_FIELDS if field in fields]
            if not present:
                return ""
            value = fields[present[0]]
    except (ValueError, TypeError, LookupError):  # neither text nor an object of JSON
        value = None
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise DataError(
            f"{printable(member.name)} in {printable(path)}: the label is not a number or a name; write the class there"
        )
    return str(value)


def members_of(path: str, file: StoredFile | None) -> Iterator[tuple[Member, bytes]]:
    """Yields the files of a tar file, with the content of label files. Arguments and errors as in `list_tar`."""
    try:
        yield from _read_members(file or LocalFile(path), path)
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({error.strerror}); restore the file") from error


def _read_members(file: StoredFile, path: str) -> Iterator[tuple[Member, bytes]]:
    names: dict[str, Member] = {}  # of the files, for hard links
    given: dict[str, str] = {}  # names and sizes from preceding headers, which ustar's fields are too short for
    position = 0
    while block := _header(file, position, path):
        kind, start = block[156:157], position + _BLOCK
        size = int(given["size"]) if "size" in given and kind not in _HEADERS else _number(block[124:136])
        if kind in _EMPTY:
            size = 0
        if start + size > file.size:
            raise _truncated(path)
        position = start + -(-size // _BLOCK) * _BLOCK
        if kind in _HEADERS:
            content = _content(file, block, start, size)
            if kind in (b"L", b"K"):
                given["path" if kind == b"L" else "linkpath"] = os.fsdecode(content.rstrip(b"\0"))
            elif kind == b"x":
                given.update(_records(content))
            continue
        name = _clean(given.get("path") or _name(block))
        link = given.get("linkpath") or os.fsdecode(block[157:257].partition(b"\0")[0])
        given = {}
        if kind == b"1" and (target := names.get(_clean(link))) is not None:
            yield Member(name, target.offset, target.size), b""
        elif kind in _FILES and not name.endswith("/"):
            member = names[name] = Member(name, start, size)
            is_label = name.lower().endswith((CLS, JSON)) and size <= _MAX_LABEL
            yield member, _content(file, block, start, size) if is_label else b""


def _header(file: StoredFile, position: int, path: str) -> bytes:
    """Reads a member's header and what follows it, _READ bytes; empty at the end of the archive."""
    block = file.read(_READ, position)
    header = block[:_BLOCK]
    whole = len(header) == _BLOCK
    if whole and _is_header(header):
        return block
    if position == 0 and (why := _NOT_TAR.get(header[:2])):
        raise DataError(f"{printable(path)}: {why}")
    if not whole:
        raise _truncated(path)
    if position:
        if header.strip(b"\0"):
            raise DataError(f"{printable(path)}: is damaged at byte {position:,}; restore the file")
        return b""
    why = "is not a tar file; pack the images again, or correct data.path"
    if not header.strip(b"\0"):
        why = "is an empty tar file; remove it, or pack it again"
    raise DataError(f"{printable(path)}: {why}")


def _content(file: StoredFile, block: bytes, start: int, size: int) -> bytes:
    return block[_BLOCK : _BLOCK + size] if _BLOCK + size <= len(block) else file.read(size, start)


def _truncated(path: str) -> DataError:
    return DataError(
        f"{printable(path)}: is truncated, it ends within a file or without the end of a tar file; copy it again"
    )


def _is_header(header: bytes) -> bool:
    try:
        recorded = _number(header[148:156])
        _number(header[124:136])
    except ValueError:
        return False
    # The sum of all bytes, the field itself as spaces. Adler-32 has it, modulo 65,521, and is much faster than a loop.
    total = (zlib.adler32(header) & 0xFFFF) - 1
    return (recorded + sum(header[148:156]) - 8 * 0x20 - total) % 65521 == 0


def _number(field: bytes) -> int:
    """Reads a number in octal digits, or in binary if it is too large for them."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return os.fsdecode(prefix + b"/" + name if prefix else name)


def _clean(name: str) -> str:
    while name.startswith(("./", "/")):
        name = name[1:] if name.startswith("/") else name[2:]
    return name


def _records(content: bytes) -> dict[str, str]:
    """Reads the fields of a pax header: lines "LENGTH KEYWORD=VALUE"."""
    fields = {}
    while content and (digits := content.partition(b" ")[0]).isdigit() and int(digits) > len(digits) + 1:
        keyword, _, value = content[len(digits) + 1 : int(digits) - 1].partition(b"=")
        if keyword in (b"path", b"linkpath") or (keyword == b"size" and value.isdigit()):
            fields[keyword.decode()] = os.fsdecode(value)
        content = content[int(digits) :]
    return fields
