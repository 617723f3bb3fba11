"""Classes by name. A label is a position among a source's class names, so images of two sources are compared by the names."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from deit_jax.data.sources import (
    DataError,
    Example,
    ImageSource,
    UnusableError,
    fingerprint_of,
    is_multi_label,
    notes_of,
    searched_folders,
)

_SHOWN = 3  # names that a message lists


class ClassesError(DataError):
    """Classes that are not those a model was trained on. The message is one line that shows the difference."""


class Relabelled:
    """Another source's images, with labels that count in other class names.

    Args:
        source: the images.
        class_names: the names that labels count in.
        numbers: for each class of `source`, its number in `class_names`.
    """

    def __init__(self, source: ImageSource, class_names: Sequence[str], numbers: Sequence[int]):
        self._source = source
        self._class_names = tuple(class_names)
        self._numbers = tuple(int(number) for number in numbers)
        self.notes = tuple(notes_of(source))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names that labels count in."""
        return self._class_names

    @property
    def multi_label(self) -> bool:
        """As the other source."""
        return is_multi_label(self._source)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        image, label = self._source[index]
        if isinstance(label, tuple):
            return Example(image, tuple(self._number(one, index) for one in label))
        return Example(image, self._number(label, index))

    def _number(self, label: int, index: int) -> int:
        if not 0 <= label < len(self._numbers):
            raise UnusableError(
                f"{self.describe(index)}: label {label} is outside the {len(self._numbers)} classes; correct it"
            )
        return self._numbers[label]

    def describe(self, index: int) -> str:
        """The other source's answer."""
        return self._source.describe(index)

    @property
    def folders(self) -> tuple[str, ...]:
        """As the other source."""
        return searched_folders(self._source)

    def fingerprint(self) -> str:
        """The other source's: the images are the same."""
        return fingerprint_of(self._source)


def with_classes(
    source: ImageSource, class_names: Sequence[str], *, what: str, of: str, numbers: bool = False
) -> ImageSource:
    """`source` with labels that count in `class_names`: matched by name, so `source` may have a part of the classes only.

    Args:
        source: the images.
        class_names: the classes of the model, in the order of its outputs.
        what: the images, as messages call them, e.g. "the evaluation images in DIR".
        of: whose classes `class_names` are, e.g. "the run in DIR".
        numbers: names that are exactly 0, 1, ..., K - 1 for K classes are the classes' numbers (as ImageNet V2's folders).

    Raises:
        ClassesError: `source` has a class that `class_names` does not have, or names are not unique and differ.
    """
    found, wanted = tuple(source.class_names), tuple(class_names)
    if found == wanted:
        return source
    where = {name: number for number, name in enumerate(wanted)}
    if set(found) <= set(wanted):
        if twice := [name for names in (found, wanted) for name in names if names.count(name) > 1]:
            raise ClassesError(
                f"{what} cannot be matched with the classes of {of}: the class name {twice[0]!r} is there twice"
            )
        return Relabelled(source, wanted, [where[name] for name in found])
    if numbers and found == tuple(map(str, range(len(wanted)))):
        return Relabelled(source, wanted, range(len(wanted)))
    raise ClassesError(
        f"{what}: the classes are not those of {of} ({difference(found, wanted)}); give images of classes with the same names"
    )


def order_of(class_names: Sequence[str], among: Sequence[str]) -> tuple[int, ...] | None:
    """The number that each of `class_names` has `among` the same names in any order; None if the two are not the same names."""
    where = {name: number for number, name in enumerate(among)}
    if len(where) != len(among) or len(class_names) != len(among) or set(class_names) != set(where):
        return tuple(range(len(among))) if tuple(class_names) == tuple(among) else None
    return tuple(where[name] for name in class_names)


def difference(found: Sequence[str], expected: Sequence[str]) -> str:
    """How two lists of class names differ, for people: which are new, which are missing, or where the order differs."""
    new = [name for name in found if name not in set(expected)]
    missing = [name for name in expected if name not in set(found)]
    if not new and not missing:
        if len(found) != len(expected):
            return f"{len(found)} names, not {len(expected)}"
        first = next(i for i, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other)
        return f"the same names in another order, class {first} is {found[first]!r}, not {expected[first]!r}"
    parts = [f"{word}: {_listed(names)}" for word, names in (("new", new), ("missing", missing)) if names]
    return "; ".join(parts) + _near(new, missing)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _near(new: Sequence[str], missing: Sequence[str]) -> str:
    """What two names that look alike differ in: macOS and archives made there spell accents in another way."""
    pairs = {_plain(name): name for name in missing}
    for name in new:
        other = pairs.get(_plain(name))
        if other is None:
            continue
        if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other):
            return f"; {name!a} and {other!a} are the same letters in composed and decomposed Unicode characters"
        return f"; {name!r} and {other!r} differ in capitals or spaces only"
    return ""


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()
