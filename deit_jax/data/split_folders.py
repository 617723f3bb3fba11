"""Finds the splits' folders by their usual names.

A folder with exactly the configured name comes first, then one that differs only in case. The default names also match the usual
spellings: "train" also `training` or `train_set`; "validation" also `val`, `valid`, `dev`, `eval`. If several folders match,
none is chosen. A `test` folder may serve as "validation" if there is no other folder for evaluation.
"""

from __future__ import annotations

import os
import re

from deit_jax.data.folder_listing import class_folders
from deit_jax.data.sources import DataError
from deit_jax.printable import printable

_SPELLINGS = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "val", "valid", "validate", "validating", "eval", "evaluation", "dev", "devel"),
}
_TEST = ("test", "testing", "tst")
_FILLERS = ("set", "data", "images", "imgs", "img", "split")


def find_split(root: str, name: str, *, held_out: bool = False, or_test: bool = False) -> str | None:
    """Returns the path of the folder in `root` that holds a split, by the rules above; None if there is none.

    Args:
        root: the folder of the splits' folders.
        name: name of the split.
        held_out: the folders in `root` may be the classes themselves. Then a folder with a split's name but without sub-folders
            is a class (e.g. "train", among vehicles), and "dev" is a split only next to "train".
        or_test: use `test` for "validation" if there is no other folder.

    Raises DataError if several folders match.
    """
    exact = os.path.join(root, name)
    if os.path.isdir(exact) and not (held_out and not class_folders(exact)):
        return exact
    if not os.path.isdir(root):
        return None
    there = class_folders(root)
    candidates = [[folder for folder in there if folder.casefold() == name.casefold()]]
    spellings = _SPELLINGS.get(name, ())
    if held_out and name != "train" and find_split(root, "train", held_out=True) is None:
        spellings = spellings[:2]
    candidates.append([folder for folder in there if _split_word(folder) in spellings])
    if name == "validation" and or_test:
        candidates.append([folder for folder in there if _split_word(folder) in _TEST])
    for found in candidates:
        paths = [path for folder in found if class_folders(path := os.path.join(root, folder))]
        if len({os.path.realpath(path) for path in paths}) > 1:
            names = [printable(os.path.basename(path)) for path in paths]
            field = "train_split" if name == "train" else "eval_split"
            raise DataError(
                f"{printable(root)}: the folders {' and '.join(names)} could each be {name!r}; specify one, e.g. "
                f"--config.data.{field}={names[0]}"
            )
        if paths:
            return paths[0]
    return None


def split_note(folder: str, name: str, what: str) -> list[str]:
    """Returns a line with the folder of the `what` ("training", "evaluation") images if its name is not the configured one."""
    found = os.path.basename(folder)
    if found == name or (name, found) == ("validation", "val"):
        return []
    if name == "validation" and _split_word(found) in _TEST:
        return [
            f"{what} images come from {printable(folder)}, since there is no folder `validation` or `val`; training selects "
            "its best checkpoint with them"
        ]
    return [f"{what} images come from {printable(folder)}"]


def is_split_folder(name: str) -> bool:
    """Whether a folder has a usual name of a split."""
    return any(_split_word(name) in words for words in (*_SPELLINGS.values(), _TEST))


def unused_splits(root: str, used: str) -> list[str]:
    """Returns a line for each split's folder in `root` with class folders, except the `used` one."""
    return [
        f"{printable(folder)} is not used; --config.data.eval_split={printable(os.path.basename(folder))} evaluates on it"
        for folder in _other_splits(root, used)
    ]


def sibling_splits(folder: str) -> list[str]:
    """Returns a line for each split's folder next to `folder`, if `folder` has a split's name too."""
    if not is_split_folder(os.path.basename(os.path.abspath(folder))):
        return []
    above = os.path.normpath(os.path.join(folder, os.pardir))
    return [
        f"{printable(other)} is not used; --config.data.path={printable(above)} uses both"
        for other in _other_splits(above, folder)
    ]


def _other_splits(root: str, used: str) -> list[str]:
    try:
        folders = [os.path.join(root, name) for name in class_folders(root) if is_split_folder(name)]
        return [folder for folder in folders if class_folders(folder) and not os.path.samefile(folder, used)]
    except (DataError, OSError):  # unused folders need not be readable
        return []


def _split_word(name: str) -> str:
    """Returns "train" for "Train_Set" and "train-images"; "" for a name with several words."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word and word not in _FILLERS]
    return words[0].removesuffix("set") if len(words) == 1 else ""


def words_of(text: str) -> list[str]:
    """Returns the words of a name in lower case: ["imagenet1k", "train"] for "imagenet1k-Train"."""
    return [word.removesuffix("set") for word in re.split(r"[^a-z0-9]+", text.lower()) if word]


def split_words(name: str) -> frozenset[str]:
    """Returns the usual spellings of a split; only `name` itself for others than train, validation and test."""
    return frozenset(_TEST if name == "test" else _SPELLINGS.get(name, (name.casefold(),)))
