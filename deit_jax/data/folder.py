"""Class folders, and folders of unlabelled images, as image sources."""

from __future__ import annotations

import os
import time
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
import PIL
from PIL import Image

from deit_jax.data.file_names import IMAGE_EXTENSIONS, describe_skipped, skipped_note
from deit_jax.data.folder_index import AUTO, read_index, write_index
from deit_jax.data.folder_listing import Listing, list_class, list_files, scan_root
from deit_jax.data.sources import UNLABELLED, DataError, Example, MissingDataError, UnusableError, digest
from deit_jax.printable import is_utf8, printable

SMALLEST_INDEXED = 10_000  # images; listing fewer is fast, and small folders leave no index files behind
# A folder that changed this shortly before it was listed may change again without a new modification time.
SETTLED_SECONDS = 2.0


class ImageFolderSource:
    """One folder per class, as in `torchvision.datasets.ImageFolder`: same classes, same files, same order.

    Classes are the sorted names of the sub-folders of `root`. If all of them are numbers they are sorted as numbers, where
    torchvision would put 10 before 2 (ImageNet V2 names its folders by class number). Files are searched recursively. Unlike in
    torchvision, hidden folders and files are skipped (see file_names.py), and so are links to a folder above or listed before.
    Only names are read at the start; a file is read on access.

    Args:
        root: the split's folder, e.g. `/data/imagenet/train`.
        index: where the list of files is cached for the next start: a folder, "auto" for the user's cache folder, "" for nowhere.
            Files are listed again after a folder has changed. Fewer than 10,000 images are always listed.
        notes: lines about the choice of `root`, printed before the source's own.

    Raises:
        DataError: `root` is missing or unreadable, or has no class folders; a class folder has no images or a name that is not
            UTF-8; or links put one folder into two classes.
    """

    def __init__(self, root: str | os.PathLike[str], index: str = AUTO, notes: Sequence[str] = ()):
        self._root = os.fspath(root)
        if not os.path.isdir(self._root):
            raise MissingDataError(
                f"{printable(self._root)}: no such folder; set data.path to the folder that holds `train` and `val`, or with "
                "data.held_out the class folders"
            )
        folders, skipped, loose = scan_root(self._root)
        if not folders:
            raise DataError(
                f"{printable(self._root)}: no class folders; put the images of each class in its own folder"
                + (f" ({_images(len(loose))} directly in it)" if loose else "")
            )
        # As in a UTF-8 locale: in others Python escapes the bytes of file names, which would change class names.
        self.class_names = tuple(os.fsencode(name).decode("utf-8", "surrogateescape") for name in folders)
        _check_names(self._root, self.class_names)
        self._list(folders, index)
        self.notes = (*notes, *self._own_notes(skipped, len(loose)))

    def _list(self, folders: tuple[str, ...], index: str) -> None:
        listing = read_index(self._root, folders, index)
        if listing is None:
            began = time.time()
            listing = list_files(self._root, folders)
            self._check_empty_classes(folders, listing)
            settled = listing.modified.max() < (began - SETTLED_SECONDS) * 1e9
            if settled and len(listing.labels) >= SMALLEST_INDEXED:
                write_index(self._root, listing, index)
        self._listing = listing
        self.labels = listing.labels  # int32 [N]
        self._check_avif()
        self.folders = (self._root,)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        try:
            with open(self.path(index), "rb") as file:
                return Example(file.read(), int(self.labels[index]))
        except FileNotFoundError as error:
            raise UnusableError(f"{self.describe(index)}: no longer exists; restore the file or start again") from error
        except OSError as error:
            raise DataError(
                f"{self.describe(index)}: cannot be read ({error.strerror}); restore the file or start again"
            ) from error

    def relative_path(self, index: int) -> str:
        """Returns the file's path relative to the split's folder."""
        return self._listing.file(index)

    def path(self, index: int) -> str:
        """Returns the file's path."""
        return os.path.join(self._root, self._listing.file(index))

    def describe(self, index: int) -> str:
        """Returns the file's path, with bytes that are not UTF-8 and control characters escaped."""
        return printable(self.path(index))

    def file_name(self, index: int) -> str:
        """Returns the file's name without folders."""
        return self._listing.file(index).rpartition("/")[2]

    def fingerprint(self) -> str:
        """Digest of the files' relative paths and labels."""
        return digest(self._listing.names, self._listing.ends, self._listing.labels)

    def _check_empty_classes(self, folders: Sequence[str], listing: Listing) -> None:
        empty = np.flatnonzero(np.bincount(listing.labels, minlength=len(folders)) == 0)
        if not empty.size:
            return
        name = folders[empty[0]]
        skipped = list_class(self._root, name).skipped
        raise DataError(
            f"{printable(os.path.join(self._root, name))}: a class folder without images ({' '.join(IMAGE_EXTENSIONS)})"
            + (f", it has {describe_skipped(skipped)}" if skipped else "")
            + (f", and {empty.size - 1} more such folders" if empty.size > 1 else "")
            + "; add images or remove the folder"
        )

    def _check_avif(self) -> None:
        # A fast search in all names, because most folders have none.
        if b".avif" in self._listing.names.tobytes().lower() and not _reads_avif():
            avif = [i for i in range(len(self)) if self.relative_path(i).lower().endswith(".avif")]
            if avif:
                more = f" and {len(avif) - 1:,} more" if len(avif) > 1 else ""
                raise DataError(
                    f"{self.describe(avif[0])}{more}: this Pillow ({PIL.__version__}) does not read AVIF; "
                    "install Pillow 11.3 or newer, or convert them to JPEG"
                )

    def _own_notes(self, skipped: Counter[str], loose: int) -> list[str]:
        root = printable(self._root)
        notes = [skipped_note(self._root, skipped + self._listing.skipped_kinds())]
        if loose:
            notes.append(
                f"{_images(loose)} directly in {root}, outside the class folders, and {'is' if loose == 1 else 'are'} not used"
            )
        repeated, elsewhere = self._listing.repeated.tolist()
        if repeated:
            notes.append(
                f"1 image of {root} is a link to another image's file" + (", in another class" if elsewhere else "")
                if repeated == 1
                else f"{repeated:,} images of {root} are links to another image's file"
                + (f", {elsewhere:,} of them to an image in another class" if elsewhere else "")
            )
        return [note for note in notes if note]


class LooseImageFolder(ImageFolderSource):
    """All images in a folder, at any depth: one class, "unlabelled". Files are selected and skipped as in class folders.

    Args:
        root: the folder.
        index: see `ImageFolderSource`.
        notes: lines about the choice of `root`, printed before the source's own.

    Raises:
        DataError: `root` is missing or unreadable, or has no images.
    """

    def __init__(self, root: str | os.PathLike[str], index: str = AUTO, notes: Sequence[str] = ()):
        self._root = os.fspath(root)
        if not os.path.isdir(self._root):
            raise MissingDataError(f"{printable(root)}: no such folder; set data.path to a folder of images")
        self.class_names = UNLABELLED
        self._list((".",), index)
        self.notes = (*notes, *self._own_notes(Counter(), 0))

    def relative_path(self, index: int) -> str:
        """Returns the file's path relative to the folder."""
        return super().relative_path(index).removeprefix("./")

    def path(self, index: int) -> str:
        """Returns the file's path."""
        return os.path.join(self._root, self.relative_path(index))

    def _check_empty_classes(self, folders: Sequence[str], listing: Listing) -> None:
        if not len(listing.labels):
            skipped = listing.skipped_kinds()
            raise DataError(
                f"{printable(self._root)}: no images ({' '.join(IMAGE_EXTENSIONS)})"
                + (f", it has {describe_skipped(skipped)}" if skipped else "")
                + "; set data.path to a folder of images"
            )


def _check_names(root: str, class_names: tuple[str, ...]) -> None:
    for name in class_names:
        if not is_utf8(name):
            raise DataError(
                f"{printable(os.path.join(root, name))}: the name of a class is not UTF-8; rename the folder "
                "(convmv -f latin1 -t utf8 -r --notest renames all)"
            )
    by_form: dict[str, str] = {}
    for name in class_names:
        other = by_form.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise DataError(
                f"{printable(root)}: the class folders {other!a} and {name!a} look the same, in composed and decomposed Unicode "
                "characters; put their images into one folder"
            )


def _images(number: int) -> str:
    return "1 image is" if number == 1 else f"{number:,} images are"


def _reads_avif() -> bool:
    return ".avif" in Image.registered_extensions()  # since Pillow 11.3, or by a plugin
