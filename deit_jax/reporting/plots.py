"""Pictures for people."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from deit_jax.reporting.fonts import drawn, use_fonts

# Characters of a line, and lines, so that a long class name takes no more room than its picture has.
_CAPTION, _LABEL = {"width": 40, "lines": 6}, {"width": 32}


def image_grid(
    path: Path,
    columns: Sequence[str],
    images: np.ndarray,
    captions: Sequence[Sequence[str]],
    *,
    class_names: Sequence[str] = (),
    inches: float = 1.9,
) -> None:
    """Write a grid of images as PNG (or the format that the suffix of `path` names).

    columns: a title for each. images: uint8[rows, columns, H, W, 3]. captions: a text under each image, "" for none.
    class_names: those that the captions mention; see `fonts.drawn`. inches: the side of an image.
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
            axis.set_xlabel(drawn(captions[row][column], class_names, **_CAPTION), fontsize=7)
            if row == 0:
                axis.set_title(columns[column], fontsize=9)
    use_fonts(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def captioned_grid(
    file: BytesIO,
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    *,
    class_names: Sequence[str] = (),
    columns: int = 4,
) -> tuple[int, int]:
    """Write images, each uint8[H, W, 3], with a text below each, as a PNG into `file`; returns its (height, width) in pixels.

    class_names: those that the captions mention; see `fonts.drawn`.
    """
    columns, dpi = min(columns, len(images)), 110
    rows = -(-len(images) // columns)
    side = max(2.4, *(max(image.shape[:2]) / dpi for image in images))  # inches
    size = (side * columns, (side + 0.3) * rows)
    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, image, caption in zip(axes, images, captions, strict=False):
        axis.imshow(image)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel(drawn(caption, class_names, **_CAPTION), fontsize=7)
    for axis in list(figure.axes)[len(images) :]:
        axis.set_axis_off()
    use_fonts(figure)
    figure.savefig(file, format="png", dpi=dpi)
    return round(size[1] * dpi), round(size[0] * dpi)


def confusion_picture(matrix: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The matrix int64[K, K] (row: class, column: what it was taken for), shaded by its share of the row: uint8[H, W, 3]."""
    figure = Figure(figsize=(2 + 0.3 * len(names), 1.5 + 0.3 * len(names)), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    labels = [drawn(name, names, **_LABEL) for name in names]
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, str(count), ha="center", va="center", fontsize=6, color=colour)
    axis.set_xticks(range(len(names)), labels, rotation=90, fontsize=7)
    axis.set_yticks(range(len(names)), labels, fontsize=7)
    axis.set_xlabel("taken for", fontsize=8)
    axis.set_ylabel("class", fontsize=8)
    use_fonts(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
