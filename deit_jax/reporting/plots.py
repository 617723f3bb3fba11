"""Pictures for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def image_grid(
    path: Path, columns: Sequence[str], images: np.ndarray, captions: Sequence[Sequence[str]], *, inches: float = 1.9
) -> None:
    """Write a grid of images as PNG (or whatever the suffix of `path` says).

    columns: a title for each. images: uint8[rows, columns, H, W, 3]. captions: a text under each image, "" for none.
    inches: the side of an image.
    """
    rows, count = images.shape[:2]
    figure = Figure(figsize=(inches * count, (inches + 0.45) * rows + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, count, squeeze=False)
    for row in range(rows):
        for column in range(count):
            axis = axes[row, column]
            axis.imshow(images[row, column])
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(captions[row][column], fontsize=7)
            if row == 0:
                axis.set_title(columns[column], fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
