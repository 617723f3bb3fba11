"""ReaL: the reassessed labels of ImageNet's validation images (Beyer et al., arXiv 2006.07159).

Its file, real.json, is a list of 50,000 lists: the correct labels of ILSVRC2012_val_00000001, ..._00000002 and so on. An answer
is correct if it is in the list; the 3,163 images with an empty list are not scored.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from deit_jax.data.sources import DataError, Example, ImageSource, MissingDataError, SourceView

URL = "https://raw.githubusercontent.com/google-research/reassessed-imagenet/master/real.json"
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})(?!\d)")


class RealLabels(SourceView):
    """Another source's images with the labels of a ReaL file, matched by file name. Multi-label.

    Args:
        source: ImageNet validation images, from a folder or TFDS, with classes in ImageNet's order (sorted by WordNet ID).
        path: real.json.

    Raises MissingDataError if the file does not exist; DataError if it is not such a list or the source has no file names, and
    while reading if an image's name is not in the list.
    """

    def __init__(self, source: ImageSource, path: str):
        if not hasattr(source, "file_name"):
            raise DataError(f"{path}: ReaL's labels are matched by file name, which {source.describe(0)} does not have")
        super().__init__(source)
        self.multi_label = True
        self._path = path
        self._labels = read_real_labels(path, len(source.class_names))

    def __getitem__(self, index: int) -> Example:
        source: Any = self._source  # it has file_name
        name = source.file_name(index)
        match = _NUMBER.search(name)
        if match is None or not 0 < int(match[1]) <= len(self._labels):
            raise DataError(
                f"{self._source.describe(index)}: its name {name!r} is not one of the {len(self._labels):,} images of "
                f"{self._path} (ILSVRC2012_val_00000001 and so on); use ImageNet's validation images with their original names"
            )
        return Example(self._source[index].image, self._labels[int(match[1]) - 1])


def read_real_labels(path: str, num_classes: int) -> list[tuple[int, ...]]:
    """Returns the lists of a ReaL file, in order; raises MissingDataError or DataError like `RealLabels`."""
    try:
        lists = json.loads(Path(path).expanduser().read_bytes())
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such file; ReaL's labels are at {URL}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); get it again from {URL}") from error
    if not isinstance(lists, list) or not lists:
        raise DataError(f"{path} is not a list of lists of labels; get it from {URL}")
    for number, labels in enumerate(lists, 1):
        if not isinstance(labels, list) or not all(type(it) is int and 0 <= it < num_classes for it in labels):
            raise DataError(
                f"{path}: entry {number} is {str(labels)[:60]}, not a list of labels of {num_classes} classes; get it from {URL}"
            )
    return [tuple(labels) for labels in lists]
