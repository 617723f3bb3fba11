"""A custom data source: circles, squares and crosses, drawn on demand.

    PYTHONPATH=examples/extending python run.py --config=configs/quickstart.py:no_teacher --workdir=runs/shapes \
        --config.plugins=own_source --config.data.source=shapes
"""

import numpy as np

from deit_jax import register_source


class Shapes:
    """A white shape on black at a random place; the image for an index is always the same."""

    class_names = ("circle", "square", "cross")

    def __init__(self, split, count, size=28):
        self.split, self.size = split, size
        self.labels = np.arange(count) % len(self.class_names)  # optional: all labels, without drawing

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        seed = [self.split == "train", index]  # the splits have no image in common
        row, column, radius = np.random.default_rng(seed).uniform([9, 9, 3], [self.size - 9, self.size - 9, 8])
        y, x = np.abs(np.mgrid[: self.size, : self.size] - np.array([row, column])[:, None, None])
        inside = (np.hypot(x, y) <= radius, np.maximum(x, y) <= radius, (np.minimum(x, y) <= 1) & (x + y <= radius))
        label = int(self.labels[index])
        return np.where(inside[label], 255, 0).astype(np.uint8), label

    def fingerprint(self):  # optional: a run refuses to resume if this text changes
        return f"shapes, version 1: {len(self)} of {self.split}"


def open_shapes(data, split):  # data: the section config.data; split: "train" or "eval"
    return Shapes(data.train_split if split == "train" else data.eval_split, 6_000 if split == "train" else 600)


register_source("shapes", open_shapes)
