"""Training images of which only some are labelled: two sources as one, in which a teacher alone labels the others."""

from __future__ import annotations

from typing import Any

from deit_jax.data.registry import open_source, open_unlabelled
from deit_jax.data.sources import Example, ImageSource, SourceView, fingerprint_of, notes_of, path_of, searched_folders

UNLABELLED_ROW = -1  # the label of an unlabelled image


class JointSource(SourceView):
    """Labelled images, then unlabelled ones, whose labels are ignored and are -1 here.

    Attributes:
        labelled, unlabelled: the two sources.
        class_names: of the labelled images.
    """

    def __init__(self, labelled: ImageSource, unlabelled: ImageSource):
        super().__init__(labelled, notes_of(unlabelled))
        self.labelled, self.unlabelled = labelled, unlabelled
        self.folders = (*searched_folders(labelled), *searched_folders(unlabelled))

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)

    def __getitem__(self, index: int) -> Example:
        if index < len(self.labelled):
            return self.labelled[index]
        return Example(self.unlabelled[index - len(self.labelled)].image, UNLABELLED_ROW)

    def describe(self, index: int) -> str:
        """Returns the description of the source that has the image."""
        count = len(self.labelled)
        return self.labelled.describe(index) if index < count else self.unlabelled.describe(index - count)

    def path(self, index: int) -> str:
        """Returns the path of the image's own file, see `path_of`."""
        count = len(self.labelled)
        return path_of(self.labelled, index) if index < count else path_of(self.unlabelled, index - count)

    def fingerprint(self) -> str:
        """Digest of the labelled images; `unlabelled` has its own."""
        return fingerprint_of(self.labelled)


def open_training_images(config: Any, data: Any = None) -> ImageSource:
    """Opens the training images of a config, with those of its section `unlabelled` if there are any.

    data: its section `data`, or one with another index; None: its own. Raises DataError.
    """
    data = config.data if data is None else data
    source = open_source(data, "train")
    return JointSource(source, open_unlabelled(config.unlabelled, data.index)) if config.unlabelled.source else source


def labelled_of(source: ImageSource) -> ImageSource:
    """Returns the labelled images of a run's training images: all of them, unless they are a `JointSource`."""
    return source.labelled if isinstance(source, JointSource) else source


def unlabelled_of(source: ImageSource) -> ImageSource | None:
    """Returns the unlabelled images of a run's training images; None if it has none."""
    return source.unlabelled if isinstance(source, JointSource) else None


def is_unlabelled(source: ImageSource, index: int) -> bool:
    """Whether image `index` of a run's training images is unlabelled."""
    return isinstance(source, JointSource) and index >= len(source.labelled)


def same_kind(source: ImageSource, index: int) -> range:
    """Returns the images of a run's training images that are of the same kind as image `index`, labelled or not."""
    count = len(labelled_of(source))
    return range(count, len(source)) if index >= count else range(count)
