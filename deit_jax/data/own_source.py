"""Sources from outside: what an opener of `deit_jax.register_source` returns, checked as it is opened and read."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from deit_jax.data.sources import DataError, Example, MissingDataError, Split, UnusableError, digest
from deit_jax.errors import UserError, raised_outside

_REQUIRED = ("__len__", "__getitem__", "class_names")
# Attributes and methods that a source may have; where it has none, the package asks for none.
_OPTIONAL = ("notes", "folders", "multi_label", "file_name")


def open_own(name: str, opener: Callable[[Any, Split], Any], data: Any, split: Split) -> OwnSource:
    """What a registered opener returns. Raises DataError if it raises, or returns what is not a source."""
    where = f"the data source {name}"
    try:
        return OwnSource(where, opener(data, split))
    except UserError:
        raise
    except FileNotFoundError as error:  # a further set that is not there is left out
        raise MissingDataError(f"{where}: opening {split} raises {raised_outside(error)}") from error
    except Exception as error:
        raise DataError(f"{where}: opening {split} raises {raised_outside(error)}") from error


class OwnSource:
    """A user's source, as `ImageSource`.

    Args:
        where: how messages call it.
        source: has `__len__`, `__getitem__`, which gives a pair of image and label, and `class_names`. It may have
            `describe(index)`, `labels`, `fingerprint()`, `notes`, `folders`, `multi_label` and `file_name(index)`, which mean
            what they mean of the package's own sources (sources.py).

    Raises:
        DataError: it lacks one of the former, or its class names or labels are not such.
    """

    def __init__(self, where: str, source: Any):
        self._where, self._source = where, source
        missing = [name for name in _REQUIRED if not hasattr(source, name)]
        if missing:
            what = "None" if source is None else f"a {type(source).__name__}"
            raise DataError(
                f"{where}: its opener returns {what}, which has no {' and no '.join(missing)}; return an object with __len__, "
                "__getitem__ and class_names"
            )
        names = source.class_names
        if isinstance(names, str) or not all(isinstance(name, str) for name in names) or not len(names):
            raise DataError(
                f"{where}: class_names is {str(names)[:60]!r}; give the name of each class, texts in label order"
            )
        self._class_names = tuple(str(name) for name in names)
        self._length = len(source)
        for what in ("notes", "folders"):
            given = getattr(source, what, ())
            if isinstance(given, str) or not all(isinstance(each, str | os.PathLike) for each in given):
                raise DataError(f"{where}: {what} is {str(given)[:60]!r}; give a tuple of texts")
        self._several = bool(getattr(source, "multi_label", False))  # labels of an image
        self._labels = None if self._several else self._checked_labels(getattr(source, "labels", None))

    def _checked_labels(self, given: Any) -> np.ndarray | None:
        if given is None:
            return None
        labels = np.asarray(given)
        if labels.shape != (len(self),) or not (np.issubdtype(labels.dtype, np.integer) or not labels.size):
            raise DataError(
                f"{self._where}: labels are {labels.dtype}{list(labels.shape)} for {len(self)} images; give whole numbers, "
                "one for each image"
            )
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self._class_names)))
        if wrong.size:
            raise DataError(
                f"{self._where}: label {labels[wrong[0]]} of image {wrong[0]} is outside the {len(self._class_names)} classes; "
                "labels count from 0"
            )
        return labels.astype(np.int64)

    def __getattr__(self, name: str) -> Any:
        """The optional attributes, where the source has them."""
        if name not in _OPTIONAL or "_source" not in self.__dict__:
            raise AttributeError(name)
        found = getattr(self._source, name)
        return functools.partial(self._ask, found, "file_name") if name == "file_name" else found

    def _ask(self, method: Callable[..., Any], name: str, *arguments: Any) -> Any:
        try:
            return method(*arguments)
        except UserError:
            raise
        except Exception as error:
            raise DataError(f"{self._where}: {name}() raises {raised_outside(error)}") from error

    @property
    def class_names(self) -> tuple[str, ...]:
        """The source's."""
        return self._class_names

    @property
    def labels(self) -> np.ndarray | None:
        """The source's, int64 `[N]`; None where it has none."""
        return self._labels

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        try:
            example = self._source[index]
        except UserError:
            raise
        except FileNotFoundError as error:
            raise UnusableError(f"{self.describe(index)}: {raised_outside(error)}") from error
        except Exception as error:
            raise DataError(f"{self.describe(index)}: reading it raises {raised_outside(error)}") from error
        if not (isinstance(example, tuple) and len(example) == 2):
            raise DataError(f"{self.describe(index)} is a {type(example).__name__}; give a pair of image and label")
        image, label = example
        if not isinstance(image, bytes | np.ndarray):
            raise DataError(
                f"{self.describe(index)}: the image is a {type(image).__name__}; give the bytes of a file, or pixels as an "
                "uint8 array"
            )
        return Example(image, self._whole(label, index))

    def _whole(self, label: Any, index: int) -> int | tuple[int, ...]:
        numbers = np.asarray(label)
        if numbers.ndim != (1 if self._several else 0) or not (
            np.issubdtype(numbers.dtype, np.integer) or (self._several and not numbers.size)
        ):
            wanted = "a tuple of whole numbers" if self._several else "a whole number"
            raise DataError(
                f"{self.describe(index)}: the label {str(label)[:60]!r} is not {wanted}; labels count from 0"
            )
        return tuple(map(int, numbers)) if self._several else int(numbers)

    def describe(self, index: int) -> str:
        """What the source says of an image; its name and the index where it says nothing."""
        method = getattr(self._source, "describe", None)
        return f"image {index} of {self._where}" if method is None else str(self._ask(method, "describe", index))

    def fingerprint(self) -> str:
        """The source's own digest of its images; else one of its labels in their order; "" where it has neither."""
        method = getattr(self._source, "fingerprint", None)
        if method is None:
            return "" if self._labels is None else digest(self._labels)
        found = self._ask(method, "fingerprint")
        if not isinstance(found, str):
            raise DataError(f"{self._where}: fingerprint() gives a {type(found).__name__}; give a text")
        return found
