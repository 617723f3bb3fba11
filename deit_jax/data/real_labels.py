"""ReaL: the reassessed labels of ImageNet's validation images (Beyer et al., arXiv 2006.07159).

Its file, real.json, is a list of 50,000 lists: the labels that are right for ILSVRC2012_val_00000001, ..._00000002 and so on. An
answer is right if it is one of them; the 3,163 images whose list is empty are not scored.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from deit_jax.data.sources import DataError, Example, ImageSource, MissingDataError, notes_of

URL = "https://raw.githubusercontent.com/google-research/reassessed-imagenet/master/real.json"
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})(?!\d)")


class RealLabels:
    """Another source's images with the labels of a ReaL file, found by the images' file names. Multi-label.

    Args:
        source: ImageNet validation images, of a folder or of TFDS; its classes in ImageNet's order (sorted by WordNet's id).
        path: real.json.

    Raises:
        MissingDataError: there is no such file.
        DataError: it is no such list, or the source has no file names; when an image is read, its name is none of the list's.
    """

    multi_label = True

    def __init__(self, source: ImageSource, path: str):
        if not hasattr(source, "file_name"):
            raise DataError(f"{path}: ReaL's labels go by file names, which {source.describe(0)} does not have")
        self._source, self._path = source, path
        self._labels = read_real_labels(path, len(source.class_names))
        self.notes = tuple(notes_of(source))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The other source's."""
        return self._source.class_names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        name = self._source.file_name(index)
        match = _NUMBER.search(name)
        if match is None or not 0 < int(match[1]) <= len(self._labels):
            raise DataError(
                f"{self._source.describe(index)}: its name {name!r} is none of the {len(self._labels):,} images of {self._path} "
                "(ILSVRC2012_val_00000001 and on); give ImageNet's validation images under their own names"
            )
        return Example(self._source[index].image, self._labels[int(match[1]) - 1])

    def describe(self, index: int) -> str:
        """The other source's answer."""
        return self._source.describe(index)


def read_real_labels(path: str, num_classes: int) -> list[tuple[int, ...]]:
    """The lists of a ReaL file, in order. Raises MissingDataError or DataError, as `RealLabels` does."""
    try:
        lists = json.loads(Path(path).expanduser().read_bytes())
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such file; ReaL's labels are at {URL}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: is damaged ({error}); get it again from {URL}") from error
    if not isinstance(lists, list) or not lists:
        raise DataError(f"{path}: is not a list of lists of labels; get ReaL's from {URL}")
    for number, labels in enumerate(lists, 1):
        if not isinstance(labels, list) or not all(type(it) is int and 0 <= it < num_classes for it in labels):
            raise DataError(
                f"{path}: entry {number} is {str(labels)[:60]}, no list of labels of {num_classes} classes; get it from {URL}"
            )
    return [tuple(labels) for labels in lists]
