"""Parts of a split: by expression, "train[:90%]", for sources that have no such expressions of their own; and held-out images."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence

import numpy as np

from deit_jax.data.sources import DataError, ImageSource, Subset, labels_of

# The seed is fixed, so that "train[:90%]" and "train[90%:]" never share an image, whatever the seeds of the runs.
_SPLIT_SEED = (0x5B117, 0)
_BORDER = r"(-?\d+)(%?)"
_EXPRESSION = re.compile(rf"([^\[\]+]+)(?:\[(?:{_BORDER})?:(?:{_BORDER})?\])?")


def split_name(expression: str) -> str:
    """The split's name in an expression: "train" of "train[:90%]"."""
    return _match(expression)[1]


def take_part(source: ImageSource, expression: str) -> ImageSource:
    """The part of a whole split that an expression names.

    `name` is all of it. `name[a:b]` is images a to b - 1 of a fixed random order (a folder's own order is sorted by class), with
    numbers or percentages, either of which may be left out; negative ones count from the end. A percentage is rounded to the
    nearest image. Parts with a common border neither overlap nor leave a gap. Within the part the source's order is kept.

    Raises:
        DataError: no such expression, or a part without images.
    """
    match = _match(expression)
    if "[" not in expression:
        return source
    count = len(source)
    start, stop = _border(match[2], match[3], count, 0), _border(match[4], match[5], count, count)
    if start >= stop:
        raise DataError(f"split {expression!r} of {count} images is empty; give other borders")
    order = np.random.default_rng(_SPLIT_SEED).permutation(count)
    return Subset(source, np.sort(order[start:stop]))


def take_of_each_class(source: ImageSource, count: int) -> ImageSource:
    """So many images of every class, by the fixed random order of `take_part`: a larger count has the images of a smaller one.

    Within the part the source's order is kept.

    Raises:
        DataError: the source does not know its labels without opening images, or a class has fewer images.
    """
    labels = labels_of(source)
    if labels is None:
        raise DataError(
            "data.images_per_class needs the labels of all images at once, which this source does not have: take a part of the "
            "split instead, as in data.train_split='train[:20%]'"
        )
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(source))
    chosen = []
    for label, name in enumerate(source.class_names):
        members = order[labels[order] == label]
        if len(members) < count:
            raise DataError(
                f"data.images_per_class={count}, but class {name!r} has {len(members)} training images: ask for fewer"
            )
        chosen.append(members[:count])
    return Subset(source, np.sort(np.concatenate(chosen)))


def held_out(names: Sequence[str], labels: np.ndarray, share: float) -> np.ndarray:
    """Which images to keep from training so that a model can be evaluated on them: bool `[N]`.

    Of every class with two images or more the share, rounded, but at least one and not all; of a class with one image none. They
    are chosen by the digests of their names: the same in every run, and nearly the same when images are added.

    Args:
        names: of the images, distinct; relative ones, so that the choice outlives a move of the folder.
        labels: integers `[N]`.
        share: above 0 and below 1.
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
        raise DataError(f"split {expression!r} cannot be understood; write e.g. train, train[:90%] or train[1000:2000]")
    return match


def _border(number: str | None, percent: str | None, count: int, default: int) -> int:
    if number is None:
        return default
    border = (int(number) * count * 2 + 100) // 200 if percent else int(number)
    return min(max(border + count if border < 0 else border, 0), count)
