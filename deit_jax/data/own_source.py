"""Sources registered with `deit_jax.register_source`: what their openers return, checked when it is opened and read."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from deit_jax.data.sources import DataError, Example, MissingDataError, Split, UnusableError, digest
from deit_jax.errors import UserError, raised_outside

_REQUIRED = ("__len__", "__getitem__", "class_names")
# Optional attributes and methods of a source.
_OPTIONAL = ("notes", "folders", "multi_label", "file_name")


def open_own(name: str, opener: Callable[[Any, Split], Any], data: Any, split: Split) -> OwnSource:
    """Opens a registered source. Raises DataError if the opener raises, or returns something that is not a source."""
    where = f"the data source {name}"
    try:
        return OwnSource(where, opener(data, split))
    except UserError:
        raise
    except FileNotFoundError as error:  # a missing extra set is skipped
        raise MissingDataError(f"{where}: opening {split} raises {raised_outside(error)}") from error
    except Exception as error:
        raise DataError(f"{where}: opening {split} raises {raised_outside(error)}") from error


class OwnSource:
    """Wraps a user's source as an `ImageSource`.

    Args:
        where: its name in messages.
        source: has `__len__`, `__getitem__`, which returns a pair of image and label, and `class_names`. It may have
            `describe(index)`, `labels`, `fingerprint()`, `notes`, `folders`, `multi_label` and `file_name(index)`, with the same
            meaning as in the package's sources (sources.py). `labels` becomes int64 `[N]`, or None if it has none.

    Raises:
        DataError: a required attribute is missing, or class names or labels are invalid.
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
                f"{where}: class_names is {str(names)[:60]!r}; give the name of each class as a string, in label order"
            )
        self.class_names = tuple(str(name) for name in names)
        self._length = len(source)
        for what in ("notes", "folders"):
            given = getattr(source, what, ())
            if isinstance(given, str) or not all(isinstance(each, str | os.PathLike) for each in given):
                raise DataError(f"{where}: {what} is {str(given)[:60]!r}; give a tuple of strings")
        self._several = bool(getattr(source, "multi_label", False))
        self.labels = None if self._several else self._checked_labels(getattr(source, "labels", None))

    def _checked_labels(self, given: Any) -> np.ndarray | None:
        if given is None:
            return None
        labels = np.asarray(given)
        if labels.shape != (len(self),) or not (np.issubdtype(labels.dtype, np.integer) or not labels.size):
            raise DataError(
                f"{self._where}: labels are {labels.dtype}{list(labels.shape)} for {len(self)} images; give integers, one "
                "per image"
            )
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.class_names)))
        if wrong.size:
            raise DataError(
                f"{self._where}: label {labels[wrong[0]]} of image {wrong[0]} is outside the {len(self.class_names)} classes; "
                "labels count from 0"
            )
        return labels.astype(np.int64)

    def __getattr__(self, name: str) -> Any:
        """Returns an optional attribute if the source has it."""
        if name not in _OPTIONAL or "_source" not in self.__dict__:
            raise AttributeError(name)
        value = getattr(self._source, name)
        return functools.partial(self._ask, value, "file_name") if name == "file_name" else value

    def _ask(self, method: Callable[..., Any], name: str, *arguments: Any) -> Any:
        try:
            return method(*arguments)
        except UserError:
            raise
        except Exception as error:
            raise DataError(f"{self._where}: {name}() raises {raised_outside(error)}") from error

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
                f"{self.describe(index)}: the image is a {type(image).__name__}; give the bytes of a file or a uint8 "
                "array"
            )
        return Example(image, self._integer_label(label, index))

    def _integer_label(self, label: Any, index: int) -> int | tuple[int, ...]:
        numbers = np.asarray(label)
        if numbers.ndim != (1 if self._several else 0) or not (
            np.issubdtype(numbers.dtype, np.integer) or (self._several and not numbers.size)
        ):
            wanted = "a tuple of integers" if self._several else "an integer"
            raise DataError(
                f"{self.describe(index)}: the label {str(label)[:60]!r} is not {wanted}; labels count from 0"
            )
        return tuple(map(int, numbers)) if self._several else int(numbers)

    def describe(self, index: int) -> str:
        """Returns the source's description of an image; by default the source's name and the index."""
        method = getattr(self._source, "describe", None)
        return f"image {index} of {self._where}" if method is None else str(self._ask(method, "describe", index))

    def fingerprint(self) -> str:
        """Returns the source's digest of its images, else a digest of its labels; "" if it has neither."""
        method = getattr(self._source, "fingerprint", None)
        if method is None:
            return "" if self.labels is None else digest(self.labels)
        result = self._ask(method, "fingerprint")
        if not isinstance(result, str):
            raise DataError(f"{self._where}: fingerprint() returns {type(result).__name__}; return a str")
        return result
