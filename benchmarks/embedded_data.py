"""Builds the embedded data set, and variants for experiments, from the Fashion-MNIST files.

    python benchmarks/embedded_data.py --idx=FOLDER --output=FILE --subset=embedded|heldout|full_test|teacher|teacher_heldout

FOLDER holds the four `*-ubyte.gz` files of https://github.com/zalandoresearch/fashion-mnist (directory `data/fashion`), also
available as Debian's package `dataset-fashion-mnist`. License: MIT, see LICENSE.fashion_mnist in deit_jax/data/embedded.

The subsets, as .npz files for `data.source=npz`:

- embedded: 10,000 training images (1,000 per class) and 2,000 test images (200 per class); the file in deit_jax/data/embedded.
- heldout: the same training images, and 5,000 other training images (500 per class) as the test split, to choose settings without
  test images.
- full_test: the same training images, and all 10,000 test images.
- teacher: all 60,000 training images and all 10,000 test images; the embedded teacher was trained on it.
- teacher_heldout: the 55,000 training images that are not in `heldout`'s test split, and that test split. With a teacher trained
  on these, a student's settings are chosen on images that neither has seen.
"""

from __future__ import annotations

import argparse
import gzip
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from deit_jax.data.sources import DataError

CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SUBSETS = ("embedded", "heldout", "full_test", "teacher", "teacher_heldout")
TRAIN_PER_CLASS, HELDOUT_PER_CLASS, TEST_PER_CLASS = 1000, 500, 200
SEED = 2012_12877  # the paper's arXiv number; any fixed number would do

_IMAGES_MAGIC, _LABELS_MAGIC = 2051, 2049


def read_idx(path: Path, magic: int) -> np.ndarray:
    """Reads a gzipped IDX file: uint8 `[N, H, W]` for images (`magic` 2051), `[N]` for labels (2049).

    Raises:
        DataError: the file is missing, not a gzip file, or truncated, or has another magic number.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as gzip ({error}); download Fashion-MNIST's files again") from error
    found = int.from_bytes(content[:4], "big")
    if found != magic:
        raise DataError(
            f"{path}: starts with {found}, but an IDX file of this kind starts with {magic}; is it another file?"
        )
    dimensions = 3 if magic == _IMAGES_MAGIC else 1
    shape = tuple(np.frombuffer(content[4 : 4 + 4 * dimensions], ">u4").tolist())
    pixels = content[4 + 4 * dimensions :]
    if len(shape) != dimensions or len(pixels) != math.prod(shape):
        raise DataError(f"{path}: {len(pixels)} bytes of data for the shape {list(shape)}; download the file again")
    return np.frombuffer(pixels, np.uint8).reshape(shape)


def balanced_indices(labels: np.ndarray, counts: Sequence[int], stream: int) -> list[np.ndarray]:
    """Draws disjoint class-balanced subsets: for each of `counts`, sorted indices of that many images per class.

    Raises:
        DataError: a class has too few images.
    """
    rng = np.random.default_rng((SEED, stream))
    drawn: list[list[np.ndarray]] = [[] for _ in counts]
    for label in range(len(CLASS_NAMES)):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < sum(counts):
            raise DataError(
                f"class {label} has {len(members)} images, {sum(counts)} are needed; is this Fashion-MNIST?"
            )
        for part, members_of_part in zip(drawn, np.split(members, np.cumsum(counts)), strict=False):
            part.append(members_of_part)
    return [np.sort(np.concatenate(part)) for part in drawn]


def build(idx: Path, output: Path, subset: str) -> None:
    """Writes one of `SUBSETS` to `output`; the result depends only on the source files.

    Raises:
        DataError: the source files are missing or damaged.
    """
    images = read_idx(idx / "train-images-idx3-ubyte.gz", _IMAGES_MAGIC)
    labels = read_idx(idx / "train-labels-idx1-ubyte.gz", _LABELS_MAGIC)
    if len(images) != len(labels):
        raise DataError(f"{idx}: {len(images)} training images and {len(labels)} labels; download the files again")
    train, heldout = balanced_indices(labels, (TRAIN_PER_CLASS, HELDOUT_PER_CLASS), stream=0)
    if subset.startswith("teacher"):
        train = np.setdiff1d(np.arange(len(labels)), heldout) if subset == "teacher_heldout" else np.arange(len(labels))
    if subset.endswith("heldout"):
        test_images, test_labels = images[heldout], labels[heldout]
    else:
        test_images = read_idx(idx / "t10k-images-idx3-ubyte.gz", _IMAGES_MAGIC)
        test_labels = read_idx(idx / "t10k-labels-idx1-ubyte.gz", _LABELS_MAGIC)
        if subset == "embedded":
            (test,) = balanced_indices(test_labels, (TEST_PER_CLASS,), stream=1)
            test_images, test_labels = test_images[test], test_labels[test]
    np.savez_compressed(
        output,
        train_images=images[train],
        train_labels=labels[train],
        test_images=test_images,
        test_labels=test_labels,
        class_names=np.asarray(CLASS_NAMES),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--idx", type=Path, required=True, help="folder with Fashion-MNIST's four *-ubyte.gz files")
    parser.add_argument("--output", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--subset", choices=SUBSETS, default="embedded")
    options = parser.parse_args(argv)
    try:
        build(options.idx, options.output, options.subset)
    except DataError as error:
        parser.exit(1, f"{error}\n")
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
