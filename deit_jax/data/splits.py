"""Parts of a split by expression, e.g. "train[:90%]", for sources without such expressions; and held-out images."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence

import numpy as np

from deit_jax.data.sources import DataError, ImageSource, Subset, labels_of

# A fixed seed, so that "train[:90%]" and "train[90%:]" never share an image, regardless of the runs' seeds.
_SPLIT_SEED = (0x5B117, 0)
_BOUND = r"(-?\d+)(%?)"
_EXPRESSION = re.compile(rf"([^\[\]+]+)(?:\[(?:{_BOUND})?:(?:{_BOUND})?\])?")


def split_name(expression: str) -> str:
    """Returns the split's name in an expression: "train" for "train[:90%]"."""
    return _match(expression)[1]


def take_part(source: ImageSource, expression: str) -> ImageSource:
    """Returns the part of a whole split that an expression selects, in the source's order.

    `name` is all of it. `name[a:b]` is images a to b - 1 of a fixed random order (a folder is sorted by class). Both bounds are
    optional numbers or percentages, which are rounded to the nearest image; negative ones count from the end. Parts with a common
    bound neither overlap nor leave a gap.

    Raises:
        DataError: invalid expression, or a part without images.
    """
    match = _match(expression)
    if "[" not in expression:
        return source
    count = len(source)
    start, stop = _range(match, count)
    if start >= stop:
        raise DataError(f"split {expression!r} of {count} images is empty; give other bounds")
    order = np.random.default_rng(_SPLIT_SEED).permutation(count)
    return Subset(source, np.sort(order[start:stop]))


def share_images(first: str, second: str) -> bool:
    """Whether two expressions select common images of one split, for every size of it."""
    one, other = _EXPRESSION.fullmatch(first), _EXPRESSION.fullmatch(second)
    if one is None or other is None:
        return first == second  # a source's own notation
    if one[1] != other[1]:
        return False
    for count in (10**3, 10**4, 10**5, 10**6, 10**9):
        (start, stop), (begin, end) = _range(one, count), _range(other, count)
        if start < stop and begin < end and max(start, begin) >= min(stop, end):
            return False
    return True


def take_of_each_class(source: ImageSource, count: int) -> ImageSource:
    """Returns the first `count` images of every class in the fixed random order of `take_part`, kept in the source's order.

    A larger count includes the images of a smaller one.

    Raises:
        DataError: the source does not know its labels without opening images, or a class has fewer images.
    """
    labels = labels_of(source)
    if labels is None:
        raise DataError(
            "data.images_per_class needs the labels of all images at once, which this source does not have: use a part of the "
            "split instead, as in data.train_split='train[:20%]'"
        )
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(source))
    chosen = []
    for label, name in enumerate(source.class_names):
        members = order[labels[order] == label]
        if len(members) < count:
            raise DataError(
                f"data.images_per_class={count}, but class {name!r} has {len(members)} training images: set a smaller number"
            )
        chosen.append(members[:count])
    return Subset(source, np.sort(np.concatenate(chosen)))


def held_out(names: Sequence[str], labels: np.ndarray, share: float) -> np.ndarray:
    """Selects images to hold out from training for evaluation: bool `[N]`.

    From a class with two or more images it selects the `share`, rounded, but at least one and not all; from a class with one
    image none. The digests of the names decide: the same in every run, and nearly the same after images are added. names:
    distinct; relative paths, so that the selection survives moving the folder. labels: integers `[N]`.
    """
    digests = np.array([hashlib.blake2b(os.fsencode(name), digest_size=8).digest() for name in names])
    held = np.zeros(len(names), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        held[members[np.argsort(digests[members], kind="stable")[:count]]] = True
    return held


def _match(expression: str) -> re.Match[str]:
    match = _EXPRESSION.fullmatch(expression)
    if match is None:
        raise DataError(f"split {expression!r} is invalid; write e.g. train, train[:90%] or train[1000:2000]")
    return match


def _range(match: re.Match[str], count: int) -> tuple[int, int]:
    return _bound(match[2], match[3], count, 0), _bound(match[4], match[5], count, count)


def _bound(number: str | None, percent: str | None, count: int, default: int) -> int:
    if number is None:
        return default
    bound = (int(number) * count * 2 + 100) // 200 if percent else int(number)
    return min(max(bound + count if bound < 0 else bound, 0), count)
