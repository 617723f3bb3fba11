"""Finds a split's shards, files that hold many images each, by their names: a folder of them, a pattern, or one file.

A shard belongs to a split by its folder, or by a word of its name: `train/0000.tar`, `imagenet1k-train-0000.tar`,
`train-00000-of-00294.parquet`. The spellings are those of split_folders.py. A missing shard is an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from deit_jax.data.other_layouts import check_no_folders
from deit_jax.data.sources import DataError, MissingDataError, Split
from deit_jax.data.split_folders import split_words, words_of
from deit_jax.data.splits import split_name
from deit_jax.data.stored_files import (
    BlockCopy,
    LocalFile,
    RemoteFile,
    StoredFile,
    copies_folder,
    copies_of,
    filesystem,
    scheme_of,
)
from deit_jax.printable import printable

# imagenet1k-train-0000, train-00000-of-00294, and the hub's earlier train-00000-of-00294-8b5f2c1a9d0e4f37
_NUMBERED = re.compile(r"(?:(?P<prefix>.*?)[-_.])?(?P<number>\d+)(?P<of>[-_]of[-_](?P<count>\d+)(?:-[0-9a-f]{8,})?)?")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_MAX_EXPANDED = 1_000_000


@dataclasses.dataclass(frozen=True)
class Shards:
    """A split's files in order, relative to `root`, and lines to print about their choice.

    remote: size and version of each file, if they are in a bucket; copied: the bytes of them that may be kept on disk.
    """

    root: str
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()
    remote: tuple[tuple[int, str], ...] = ()
    copied: int = 0

    def path(self, number: int) -> str:
        """Returns the path or address of a shard."""
        return os.path.join(self.root, self.files[number])

    def stored(self, number: int, ahead: int = 0) -> StoredFile:
        """Opens a shard; raises OSError. ahead: as in `RemoteFile`."""
        if not self.remote:
            return LocalFile(self.path(number))
        size, version = self.remote[number]
        folder = copies_folder(self.root) if self.copied else None
        copy = None
        if folder is not None and size:
            name = hashlib.sha256(f"{self.files[number]}\0{version}\0{size}".encode()).hexdigest()[:24]
            with contextlib.suppress(OSError):  # the disk is full, or is not writable
                copy = BlockCopy(folder / name, size, min(self.copied / sum(each for each, _ in self.remote), 1))
        return RemoteFile(self.path(number), size, copy, ahead)

    def state(self) -> list[tuple[str, int, str | int]]:
        """Returns name, size and version (locally the modification time, ns) of each shard.

        Raises:
            DataError: a shard has disappeared.
        """
        if self.remote:
            return [(name, size, version) for name, (size, version) in zip(self.files, self.remote, strict=True)]
        found = list[tuple[str, int, str | int]]()
        for number, name in enumerate(self.files):
            try:
                status = os.stat(self.path(number))
            except OSError as error:
                raise DataError(
                    f"{printable(self.path(number))}: cannot be read ({error.strerror}); restore the file"
                ) from error
            found.append((name, status.st_size, status.st_mtime_ns))
        return found


@dataclasses.dataclass(frozen=True)
class _File:
    relative: str
    folder: str  # the name of its folder below the root; "" in the root
    prefix: str  # the name without number and extension
    number: int | None = None
    count: int | None = None  # N of "-of-N"


def split_shards(data: Any, split: Split, extension: str, flags: str) -> Shards:
    """Finds the shards of a split of a config's `data` section; see `find_shards`.

    flags: prefix of the fields in messages; "" for an extra set.
    """
    expression = data.train_split if split == "train" else data.eval_split
    name = split_name(expression) if expression else ""
    or_test = bool(flags) and split == "eval"
    try:
        return find_shards(data.path, name, extension, or_test=or_test, flags=flags, copies_gib=data.copies_gib)
    except MissingDataError:
        if os.path.isdir(data.path):
            check_no_folders(data.path, f"{extension} files", flags)
        raise


def find_shards(
    path: str, name: str, extension: str, *, or_test: bool = False, flags: str = "", copies_gib: float = 0.0
) -> Shards:
    """Finds the shards of the split `name`.

    Args:
        path: a folder with the shards or with a folder of shards per split, a pattern (`{0000..0099}`, `{a,b}`, `*`, `?`) or a
            file.
        name: the split: its folder's name, the shards' name without number, or a word of it. "": all shards.
        extension: of the shards, e.g. ".tar".
        or_test: use the shards of `test` for "validation" if there are no others.
        flags: prefix of the fields in messages.
        copies_gib: of files in a bucket, keep so much of what was read on disk.

    Raises:
        MissingDataError: there are no shards, or none of this split.
        DataError: a shard is missing, or several sets of shards have this split's name.
    """
    stored: dict[str, tuple[int, str]] = {}
    if scheme_of(path):
        root, stored, listed = _list_address(path, extension, flags)
        names, is_folder = sorted(stored), root == path.rstrip("/")
    else:
        root, names, listed = _candidates(path, extension, flags)
        is_folder = os.path.isdir(path)
    files = [_parsed(relative) for relative in names]
    chosen, notes = (files, ()) if not name else _choose(files, name, root, or_test)
    if not chosen:
        raise _no_such_split(root, name, files, flags)
    if not listed:
        _check_numbers(root, chosen, whole=is_folder)
    chosen.sort(key=lambda file: (file.folder, file.prefix, -1 if file.number is None else file.number, file.relative))
    found = tuple(file.relative for file in chosen)
    if not scheme_of(path):
        return Shards(root, found, tuple(notes))
    remote = tuple(stored[each] for each in found)
    copied, note = copies_of(root, sum(size for size, _ in remote), int(copies_gib * 2**30))
    return Shards(root, found, (*notes, note), remote, copied)


def has_split(path: str, name: str, extension: str) -> bool:
    """Whether there are shards of a split; arguments as in `find_shards`. Raises DataError if several sets have its name."""
    try:
        find_shards(path, name, extension)
    except MissingDataError:
        return False
    return True


def _candidates(path: str, extension: str, flags: str) -> tuple[str, list[str], bool]:
    """Returns the root, all shards relative to it, and whether the path lists every one of them by name."""
    shown = printable(path)
    if os.path.isdir(path):
        inner = [each for each in sorted(os.listdir(path)) if not each.startswith(".")]
        found = _shards_in(path, extension)
        for folder in inner:
            found += [f"{folder}/{each}" for each in _shards_in(os.path.join(path, folder), extension)]
        if found:
            return path, found, False
        for folder in inner:  # a download with the shards in its folder `data`, one level further down
            below = os.path.join(path, folder)
            if os.path.isdir(below) and any(
                _shards_in(each.path, extension) for each in os.scandir(below) if each.is_dir()
            ):
                raise MissingDataError(
                    f"{shown} has no {extension} files: set {flags}path={shlex.quote(printable(below))}"
                )
        raise MissingDataError(f"{shown} has no {extension} files, and its folders have none; correct {flags}path")
    if os.path.isfile(path):
        return os.path.dirname(path) or ".", [os.path.basename(path)], True
    if not re.search(r"[*?\[{]", path):
        raise MissingDataError(
            f"{shown}: no such file or folder; set {flags}path to the folder of the {extension} files, or to a pattern"
        )
    root = os.path.dirname(re.split(r"[*?\[{]", path, maxsplit=1)[0]) or "."
    paths, globbed = [], False
    for each in _expanded(path):
        if re.search(r"[*?\[]", each):
            globbed = True
            paths += sorted(file for file in glob.glob(each) if os.path.isfile(file))
        elif os.path.isfile(each):
            paths.append(each)
        else:
            raise MissingDataError(f"{printable(each)}: no such file, named by the pattern {shown}; restore it")
    if not paths:
        raise MissingDataError(f"{shown}: no file has such a name; correct {flags}path")
    return root, [os.path.relpath(file, root) for file in dict.fromkeys(paths)], not globbed


def _list_address(path: str, extension: str, flags: str) -> tuple[str, dict[str, tuple[int, str]], bool]:
    """Returns the same as `_candidates` for an address, with the size and the version of each file."""
    files = filesystem(scheme_of(path))
    try:
        pattern = re.search(r"[*?\[{]", path)
        patterns = _expanded(path) if pattern else [path]
        listed = not any(re.search(r"[*?\[]", each) for each in patterns)
        if pattern:
            found: dict[str, Any] = {}
            for each in patterns:
                there = files.glob(each, detail=True)
                if not there and listed:
                    raise MissingDataError(
                        f"{printable(each)}: no such file, named by the pattern {printable(path)}; restore it"
                    )
                found |= there
            root = os.path.dirname(path[: pattern.start()])
        else:
            found, root = files.find(path, maxdepth=2, detail=True), path.rstrip("/")
            if listed := set(found) == {files._strip_protocol(root)}:  # a file
                root = os.path.dirname(root)
    except DataError:
        raise
    except Exception as error:  # each package has its own for networks and permissions
        reason = printable((str(error).splitlines() or [type(error).__name__])[0][:200])
        kind = MissingDataError if isinstance(error, FileNotFoundError) else DataError
        raise kind(
            f"{printable(path)}: cannot be listed ({type(error).__name__}: {reason}); check the address and your access"
        ) from error
    start = len(files._strip_protocol(root)) + 1
    infos = {
        name[start:]: (int(info["size"]), _version(info))
        for name, info in found.items()
        if info["type"] == "file" and name.lower().endswith(extension) and not os.path.basename(name).startswith(".")
    }
    if not infos:
        raise MissingDataError(
            f"{printable(path)}: no {extension} files there, or one folder further down; correct {flags}path"
        )
    return root, infos, listed


def _version(info: dict[str, Any]) -> str:
    return str(
        next((info[name] for name in ("generation", "etag", "ETag", "blob_id", "created") if info.get(name)), "")
    )


def _shards_in(folder: str, extension: str) -> list[str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:  # not a folder, or not readable: its shards are missing, which is reported
        return []
    names = [name for name in names if name.lower().endswith(extension) and not name.startswith(".")]
    return [name for name in names if os.path.isfile(os.path.join(folder, name))]


def _expanded(pattern: str) -> list[str]:
    """Expands `{0000..0099}` and `{a,b}`, also several of them."""
    done, waiting = list[str](), [pattern]
    while waiting:
        text = waiting.pop()
        match = _BRACES.search(text)
        if match is None:
            done.append(text)
            continue
        if bounds := _RANGE.fullmatch(match[1]):
            first, last = int(bounds[1]), int(bounds[2])
            parts = [f"{number:0{len(bounds[1])}}" for number in range(first, min(last, first + _MAX_EXPANDED) + 1)]
        else:
            parts = match[1].split(",")
        waiting += [text[: match.start()] + part + text[match.end() :] for part in reversed(parts)]
    return done


def _parsed(relative: str) -> _File:
    folder, name = os.path.split(relative)
    stem = os.path.splitext(name)[0]
    folder = os.path.basename(folder)
    match = _NUMBERED.fullmatch(stem)
    if match is None:
        return _File(relative, folder, stem)
    count = int(match["count"]) if match["count"] else None
    return _File(relative, folder, match["prefix"] or "", int(match["number"]), count)


def _choose(files: list[_File], name: str, root: str, or_test: bool) -> tuple[list[_File], Sequence[str]]:
    fold = name.casefold()
    matches: list[Callable[[str], bool]] = [
        lambda text: text == name,
        lambda text: text.casefold() == fold,
        lambda text: fold in words_of(text),
        lambda text: not split_words(name).isdisjoint(words_of(text)),
    ]
    if or_test and name == "validation":
        matches.append(lambda text: not split_words("test").isdisjoint(words_of(text)))
    for rank, matching in enumerate(matches):
        groups: dict[str, list[_File]] = {}
        for file in files:
            if file.folder and matching(file.folder):
                groups.setdefault(os.path.dirname(file.relative), []).append(file)
            elif matching(file.prefix):
                groups.setdefault(os.path.join(os.path.dirname(file.relative), file.prefix), []).append(file)
        if len(groups) > 1:
            field, names = ("train_split" if name == "train" else "eval_split"), list(map(printable, groups))
            raise DataError(
                f"{printable(root)}: the shards {' and '.join(names[:3])} could each be {name!r}; specify one, e.g. "
                f"--config.data.{field}={os.path.basename(names[0])}"
            )
        if groups:
            ((group, found),) = groups.items()
            where = printable(os.path.join(root, group))
            return found, (
                [f"evaluation images come from {where}, since there are no shards of `validation`"] if rank == 4 else ()
            )
    if name == "train" and not any(_has_split(file) for file in files):
        return files, ()
    return [], ()


def _has_split(file: _File) -> bool:
    known = split_words("train") | split_words("validation") | split_words("test")
    return not known.isdisjoint([*words_of(file.folder), *words_of(file.prefix)])


def _no_such_split(root: str, name: str, files: list[_File], flags: str) -> MissingDataError:
    there = list(dict.fromkeys(os.path.dirname(file.relative) or file.prefix or file.relative for file in files))
    shown = ", ".join(map(printable, there[:5])) + (", ..." if len(there) > 5 else "")
    part = ""
    if flags and name != "train":
        part = f", or evaluate on a part of the training images: {flags}train_split='train[:90%]' {flags}eval_split='train[90%:]'"
    elif flags:
        part = f", e.g. {flags}train_split={shlex.quote(os.path.basename(printable(there[0])))}"
    return MissingDataError(
        f"{printable(root)}: no shards of the split {name!r} (there are: {shown}); correct the split{part}"
    )


def _check_numbers(root: str, files: Iterable[_File], *, whole: bool) -> None:
    """Raises DataError if numbers of a set of shards are missing. whole: the set must also be complete."""
    sets: dict[tuple[str, str], list[_File]] = {}
    for file in files:
        if file.number is not None:
            sets.setdefault((os.path.dirname(file.relative), file.prefix), []).append(file)
    for some in sets.values():
        by_number: dict[int, _File] = {}
        for file in some:
            other = by_number.setdefault(file.number or 0, file)
            if other is not file:
                raise DataError(
                    f"{printable(root)}: {printable(other.relative)} and {printable(file.relative)} have one number; remove one"
                )
        counts = {file.count for file in some}
        if len(counts) > 1:
            raise DataError(
                f"{printable(root)}: {printable(some[0].relative)} and others are of sets of {_of(counts)} shards; remove one"
            )
        first, last, (count,) = min(by_number), max(by_number), counts
        if whole and count is not None:
            first, last = 0, max(count - 1, last)
        elif whole and len(some) > 1 and first > 1:
            first = 0
        missing = [number for number in range(first, last + 1) if number not in by_number]
        if missing:
            raise DataError(
                f"{printable(root)}: {len(missing):,} of {last - first + 1:,} shards are missing, the first is "
                f"{_name_of(missing[0], some[0])}; restore them, or list those to use in data.path, as in 'DIR/a-{{00..07}}.tar'"
            )


def _of(counts: Iterable[int | None]) -> str:
    return " and ".join("an unknown number of" if count is None else f"{count:,}" for count in counts)


def _name_of(number: int, like: _File) -> str:
    """Returns the name of the shard with another number; a digest at its end is not known."""
    head, name = os.path.split(like.relative)
    stem, extension = os.path.splitext(name)
    match = _NUMBERED.fullmatch(stem)
    if match is None:
        return printable(like.relative)
    start, stop = match.span("number")
    of = re.sub(r"-[0-9a-f]{8,}$", "-*", match["of"] or "")
    return printable(os.path.join(head, f"{stem[:start]}{number:0{stop - start}}{of}{extension}"))
