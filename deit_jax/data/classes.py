"""Matching of classes by name. A label is an index into a source's class names, so two sources are compared by these names."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from deit_jax.data.sources import DataError, Example, ImageSource, SourceView, UnusableError, fingerprint_of

_MAX_NAMES = 3  # in a message


class ClassesError(DataError):
    """The classes differ from those of a model. The message is one line that shows the difference."""


class Relabeled(SourceView):
    """Another source's images with labels that refer to `class_names`; `numbers` has the new label of each old one."""

    def __init__(self, source: ImageSource, class_names: Sequence[str], numbers: Sequence[int]):
        super().__init__(source)
        self.class_names = tuple(class_names)
        self._numbers = tuple(int(number) for number in numbers)

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

    def fingerprint(self) -> str:
        """Returns the other source's digest: the images are the same."""
        return fingerprint_of(self._source)


def with_classes(
    source: ImageSource, class_names: Sequence[str], *, what: str, of: str, numbers: bool = False
) -> ImageSource:
    """Returns `source` with labels that refer to `class_names`, matched by name; `source` may have a subset of the classes.

    Args:
        source: the images.
        class_names: the classes of the model, in the order of its outputs.
        what, of: names of the images and of the owner of `class_names` in messages, e.g. "the images in DIR", "the run in DIR".
        numbers: treat names that are exactly 0, 1, ..., K - 1 for K classes as indices (ImageNet V2's folders).

    Raises ClassesError if `source` has a class that is not in `class_names`, or names are not unique and differ.
    """
    found, wanted = tuple(source.class_names), tuple(class_names)
    if found == wanted:
        return source
    where = {name: number for number, name in enumerate(wanted)}
    if set(found) <= set(wanted):
        if twice := [name for names in (found, wanted) for name in names if names.count(name) > 1]:
            raise ClassesError(
                f"{what} cannot be matched with the classes of {of}: the class name {twice[0]!r} occurs twice"
            )
        return Relabeled(source, wanted, [where[name] for name in found])
    if numbers and found == tuple(map(str, range(len(wanted)))):
        return Relabeled(source, wanted, range(len(wanted)))
    raise ClassesError(
        f"{what}: the classes differ from those of {of} ({difference(found, wanted)}); use images of classes with the same names"
    )


def order_of(class_names: Sequence[str], among: Sequence[str]) -> tuple[int, ...] | None:
    """Returns the index of each of `class_names` in `among`, the same names in any order; None if the names differ."""
    where = {name: number for number, name in enumerate(among)}
    if len(where) != len(among) or len(class_names) != len(among) or set(class_names) != set(where):
        return tuple(range(len(among))) if tuple(class_names) == tuple(among) else None
    return tuple(where[name] for name in class_names)


def difference(found: Sequence[str], expected: Sequence[str]) -> str:
    """Describes how two lists of class names differ: which are new, which are missing, or where the order differs."""
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
    shown = ", ".join(map(repr, names[:_MAX_NAMES]))
    return shown + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")


def _near(new: Sequence[str], missing: Sequence[str]) -> str:
    """Describes how two similar names differ, e.g. because macOS and archives made there decompose accents."""
    pairs = {_plain(name): name for name in missing}
    for name in new:
        other = pairs.get(_plain(name))
        if other is None:
            continue
        if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other):
            return f"; {name!a} and {other!a} are the same letters in composed and decomposed Unicode characters"
        return f"; {name!r} and {other!r} differ only in case or spaces"
    return ""


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()
