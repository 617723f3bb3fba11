"""Error messages for data paths with an unexpected layout, which name the option or the path that fits."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from deit_jax.data.file_names import is_archive, is_image
from deit_jax.data.folder_listing import class_folders, holds_images, scan_root
from deit_jax.data.sources import DataError, MissingDataError
from deit_jax.data.split_folders import find_split, is_split_folder
from deit_jax.data.stored_files import scheme_of
from deit_jax.printable import printable

# Prefix of a field's name in a message; "" for an extra set, whose section the message already names.
MAIN = "--config.data."
_MAX_LEVELS = 4  # nested folders with nothing else in them, as in archives


def no_such_folder(path: str, flags: str = MAIN) -> DataError:
    """Returns the error for a `data.path` that is not a folder."""
    shown = printable(path)
    if scheme_of(path):
        return DataError(
            f"{shown}: class folders are read only from a disk; pack them as tar shards, and add {flags}source=tar (docs/data.md)"
        )
    if not os.path.exists(path):
        return MissingDataError(
            f"{shown}: no such folder; set {flags}path to the folder that holds `train` and `val`, or with data.held_out the "
            "class folders"
        )
    if path.lower().endswith(".npz"):
        return DataError(f"add {flags}source=npz: {shown} is a file of arrays, not a folder of images")
    if (source := _shard_source(path)) is not None:
        return DataError(
            f"{shown} is a file with images: add {flags}source={source}, or set {flags}path to a folder of images"
        )
    if is_archive(path):
        return DataError(f"{shown} is an archive: unpack it, and set {flags}path to the folder with the images")
    return DataError(f"{shown} is a file: set {flags}path to the folder that holds the class folders")


def no_split_folder(root: str, name: str, flags: str = MAIN) -> DataError:
    """Returns the error for a `data.path` without a folder for the split `name`."""
    missing = f"{printable(os.path.join(root, name))}: no such folder"
    if (other := _other_kind(root, flags)) is not None:
        return other
    if (inner := _with_split(_only_folder(root), name)) is not None:
        return MissingDataError(f"{missing}, but there is one in {printable(inner)}: set {_path(flags, inner)}")
    above = _above(root)
    if is_split_folder(os.path.basename(os.path.abspath(root))) and _find(above, name) is not None:
        return MissingDataError(
            f"{missing}: give the folder above, which holds the splits' folders: {_path(flags, above)}"
        )
    if (parent := _data_path_of_class(root)) is not None:
        return MissingDataError(
            f"{missing}, and {printable(root)} holds the images of one class: set {_path(flags, parent)}"
        )
    names, _, loose = scan_root(root)
    there = ", ".join(map(printable, names[:8])) + (", ..." if len(names) > 8 else "")
    splits = [folder for folder in names if is_split_folder(folder)]
    if not splits and len(names) > 1 and any(holds_images(os.path.join(root, folder)) for folder in names):
        held_out = f"add {MAIN}held_out=0.2 to evaluate on a fifth of its images" if flags else "set split to ''"
        return MissingDataError(f"{missing}; {printable(root)} holds class folders ({there}): {held_out}")
    if name != "train" and find_split(root, "train") is not None and flags:
        return MissingDataError(
            f"{missing}; {printable(root)} holds {there}: set {MAIN}eval_split to one of these folders, or add "
            f"{MAIN}held_out=0.2 to evaluate on a fifth of the training images"
        )
    if loose:
        there = f"{len(loose):,} images outside class folders" + (f", and {there}" if there else "")
    return MissingDataError(
        f"{missing}; {printable(root)} holds {there or 'nothing'}: set {flags}path to the folder that holds the splits' folders"
    )


def check_layout(folder: str, root: str) -> None:
    """Checks that `folder`, which is `root` or a split's folder in it, holds the class folders; `root`: `data.path`.

    Raises:
        DataError: there are no class folders, or a single one which holds the folders of splits or classes.
    """
    names, _, loose = scan_root(folder)
    shown = printable(folder)
    if folder == root and (other := _other_kind(root, MAIN)) is not None:
        raise other
    if not names:
        if not loose and (shards := _shards_instead(root, MAIN)) is not None:
            raise shards
        message = f"{shown}: no class folders; put the images of each class in its own folder"
        if loose:
            message = (
                f"{shown}: {len(loose):,} images and no class folders; put the images of each class in its own folder"
            )
        if loose and (parent := _data_path_of_class(folder)) is not None:
            message += f", or if {shown} is one class of several, set {_path(MAIN, parent)}"
        raise DataError(message)
    if len(names) > 1:
        return
    inner = _with_split(_only_folder(folder), "train")
    if inner is not None and folder == root:
        raise DataError(
            f"{shown}: training needs two classes; the splits' folders are in {printable(inner)}: set {_path(MAIN, inner)}"
        )
    inner = os.path.join(folder, names[0])
    for _ in range(_MAX_LEVELS):
        inner = _only_folder(inner) or inner
    below, _, loose = scan_root(inner)
    if loose or sum(holds_images(os.path.join(inner, name)) for name in below[:20]) < 2:
        return
    fix = f"set {_path(MAIN, inner)}" if folder == root else f"move the folders in it up, into {shown}"
    raise DataError(
        f"{shown}: only one class ({printable(names[0])!r}), training needs two; are the classes one folder deeper, in "
        f"{printable(inner)}? Then {fix}"
    )


def one_class(name: str, source: str, path: str) -> DataError:
    """Returns the error for training images of a single class."""
    message = f"{printable(path) if path else source}: only one class ({printable(name)!r}), training needs two"
    if source != "folder":
        return DataError(f"{message}; add images of a second class")
    parent = _above(path)
    if _holds_class_folders(parent) and not is_split_folder(os.path.basename(os.path.abspath(path))):
        return DataError(f"{message}; if {printable(path)} is itself a class, set {_path(MAIN, parent)}")
    return DataError(f"{message}; put each class in its own folder, and set data.path to the folder that holds them")


def check_no_folders(path: str, expected: str, flags: str = MAIN) -> None:
    """Checks that `path`, which should hold `expected` (e.g. "a .npz file"), does not hold folders of images.

    Raises:
        MissingDataError: it holds folders of images.
        DataError: it is a file.
    """
    shown = printable(path)
    if os.path.isfile(path):
        raise no_such_folder(path, flags)
    if not os.path.isdir(path):
        return
    folder = path
    for _ in range(_MAX_LEVELS):
        inner = _only_folder(folder)
        if inner is None or not class_folders(inner) or _find(folder, "train") is not None:
            break
        folder = inner
    names = class_folders(folder)
    if not any(holds_images(os.path.join(folder, name), 2) for name in names[:20]):
        return
    fields = [f"{flags}source=folder"]
    if folder != path:
        fields.append(_path(flags, folder))
    if flags and find_split(folder, "train", held_out=True) is None:
        fields.append(f"{flags}held_out=0.2")
    there = ", ".join(map(printable, names[:4])) + (", ..." if len(names) > 4 else "")
    raise MissingDataError(f"add {' and '.join(fields)}: {shown} holds folders of images ({there}), not {expected}")


def _other_kind(root: str, flags: str) -> DataError | None:
    """Returns the error for a folder without image folders that holds TFDS data, one file of arrays or archives; else None."""
    if any(holds_images(os.path.join(root, name), 1) for name in class_folders(root)[:20]):
        return None
    shown = printable(root)
    for pattern in ("features.json", "*/features.json", "*/*/features.json", "*/*/*/features.json"):
        found = sorted(Path(root).absolute().glob(pattern))
        if found:
            return _tfds_instead(found[0].parent, Path(root).absolute(), pattern.count("/"), flags)
    files = sorted(entry.name for entry in os.scandir(root) if entry.is_file() and not entry.name.startswith("."))
    arrays = [name for name in files if name.lower().endswith(".npz")]
    if len(arrays) == 1:
        return DataError(
            f"add {flags}source=npz and {_path(flags, os.path.join(root, arrays[0]))}: it is a file of arrays"
        )
    if not any(map(is_image, files)) and (shards := _shards_instead(root, flags)) is not None:
        return shards
    archives = [name for name in files if is_archive(name)]
    if archives and not any(map(is_image, files)):
        return DataError(
            f"{shown} holds the archive {printable(archives[0])} and no folders of images: unpack it, and set {flags}path to the "
            "folder with the images"
        )
    return None


def _shards_instead(root: str, flags: str) -> DataError | None:
    """Returns the error for a folder that holds tar shards or Parquet files, or whose folders do; else None."""
    for folder in (root, *(os.path.join(root, name) for name in class_folders(root)[:20])):
        try:
            names = sorted(os.listdir(folder))
        except OSError:  # an unreadable folder is reported when it is listed
            continue
        for name in names:
            if (source := _shard_source(name)) is not None:
                shard = printable(os.path.join(folder, name))
                return DataError(
                    f"add {flags}source={source}: {printable(root)} holds shards ({shard}), not folders of images"
                )
    return None


def _shard_source(name: str) -> str | None:
    """Returns the source that reads a file with this name as one of several with images; else None."""
    return {".tar": "tar", ".parquet": "parquet"}.get(os.path.splitext(name)[1].lower())


def _tfds_instead(version: Path, root: Path, levels: int, flags: str) -> DataError:
    """Returns the error for a folder of TFDS data, NAME/VERSION or NAME/CONFIG/VERSION, `levels` above VERSION."""
    name = version.parent.relative_to(root).as_posix() if levels >= 2 else version.parent.name
    where = "" if levels >= 2 else f" and {_path(flags, str(version.parents[1]))}"
    return DataError(f"add {flags}source=tfds, {flags}name={printable(name)}{where}: {printable(root)} holds TFDS data")


def _only_folder(folder: str) -> str | None:
    """Returns the only folder in a folder that has no images next to it; else None."""
    names, _, loose = scan_root(folder)
    return os.path.join(folder, names[0]) if len(names) == 1 and not loose else None


def _with_split(folder: str | None, name: str) -> str | None:
    """Returns `folder` or its only sub-folder (recursively), whichever holds the split `name`; else None."""
    for _ in range(_MAX_LEVELS):
        if folder is None or _find(folder, name) is not None:
            return folder
        folder = _only_folder(folder)
    return None


def _find(root: str, name: str) -> str | None:
    try:
        return find_split(root, name, or_test=True)
    except DataError:  # several fit: still the right folder
        return root


def _data_path_of_class(folder: str) -> str | None:
    """Returns the `data.path` to use if `folder` is one class of several, judging by its sibling folders; else None."""
    parent = _above(folder)
    if not scan_root(folder)[2] or not _holds_class_folders(parent):
        return None
    root = _above(parent)
    return root if is_split_folder(os.path.basename(os.path.abspath(parent))) and _find(root, "train") else parent


def _holds_class_folders(folder: str) -> bool:
    try:
        names = class_folders(folder)[:20]
    except DataError:
        return False
    return sum(holds_images(os.path.join(folder, name), 0) for name in names) > 1


def _above(folder: str) -> str:
    return os.path.normpath(os.path.join(folder, os.pardir))


def _path(flags: str, path: str) -> str:
    return f"{flags}path={shlex.quote(printable(path))}"
