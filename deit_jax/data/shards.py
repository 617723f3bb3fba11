"""Finds a split's shards, files that hold many images each, by their names: a folder of them, a pattern, or one file.

A shard belongs to a split by its folder, or by a word of its name: `train/0000.tar`, `imagenet1k-train-0000.tar`,
`train-00000-of-00294.parquet`. The spellings are those of split_folders.py. A missing shard is an error.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence

from deit_jax.data.sources import DataError, MissingDataError
from deit_jax.data.split_folders import split_words, words_of
from deit_jax.printable import printable

# imagenet1k-train-0000, train-00000-of-00294, and the hub's earlier train-00000-of-00294-8b5f2c1a9d0e4f37
_NUMBERED = re.compile(r"(?:(?P<prefix>.*?)[-_.])?(?P<number>\d+)(?P<of>[-_]of[-_](?P<count>\d+)(?:-[0-9a-f]{8,})?)?")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_MAX_EXPANDED = 1_000_000


@dataclasses.dataclass(frozen=True)
class Shards:
    """A split's files in order, relative to `root`, and lines to print about their choice."""

    root: str
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def path(self, number: int) -> str:
        """Returns the path of a shard."""
        return os.path.join(self.root, self.files[number])


@dataclasses.dataclass(frozen=True)
class _File:
    relative: str
    folder: str  # the name of its folder below the root; "" in the root
    prefix: str  # the name without number and extension
    number: int | None = None
    count: int | None = None  # N of "-of-N"


def find_shards(path: str, name: str, extension: str, *, or_test: bool = False, flags: str = "") -> Shards:
    """Finds the shards of the split `name`.

    Args:
        path: a folder with the shards or with a folder of shards per split, a pattern (`{0000..0099}`, `{a,b}`, `*`, `?`) or a
            file.
        name: the split: its folder's name, the shards' name without number, or a word of it. "": all shards.
        extension: of the shards, e.g. ".tar".
        or_test: use the shards of `test` for "validation" if there are no others.
        flags: prefix of the fields in messages.

    Raises:
        MissingDataError: there are no shards, or none of this split.
        DataError: a shard is missing, or several sets of shards have this split's name.
    """
    root, names, listed = _candidates(path, extension, flags)
    files = [_parsed(relative) for relative in names]
    chosen, notes = (files, ()) if not name else _choose(files, name, root, or_test)
    if not chosen:
        raise _no_such_split(root, name, files, flags)
    if not listed:
        _check_numbers(root, chosen, whole=os.path.isdir(path))
    chosen.sort(key=lambda file: (file.folder, file.prefix, -1 if file.number is None else file.number, file.relative))
    return Shards(root, tuple(file.relative for file in chosen), tuple(notes))


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
