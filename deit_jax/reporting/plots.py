"""Pictures by matplotlib. Their texts are drawn with installed fonts that have the characters, or in other words (`drawn`)."""

from __future__ import annotations

import functools
import math
import textwrap
import unicodedata
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

from deit_jax.printable import printable

TOKEN_NAMES = ("class", "distillation")
_SHAPES_TEXT = matplotlib.__version_info__ >= (3, 11)  # joins letters, and writes from right to left
_DPI = 110

# Characters of a line, and lines, so that a long class name takes no more room than its picture has.
_CAPTION, _LABEL = {"width": 40, "lines": 6}, {"width": 32}


def new_figure(width: float, height: float, *, dpi: int = 100) -> Figure:
    """An empty figure of so many inches, which no window system needs to know of."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path, *, dpi: int = 130) -> None:
    """Write a figure in the format of the path's suffix, and its folder if there is none."""
    use_fonts(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)


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
    class_names: those that the captions mention; see `drawn`. inches: the side of an image.
    """
    rows, count = images.shape[:2]
    figure = new_figure(inches * count, (inches + 0.45) * rows + 0.3)
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
    save(figure, path, dpi=_DPI)


def captioned_grid(
    file: BytesIO,
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    *,
    class_names: Sequence[str] = (),
    columns: int = 4,
) -> tuple[int, int]:
    """Write images, each uint8[H, W, 3], with a text below each, as a PNG into `file`; returns its (height, width) in pixels.

    class_names: those that the captions mention; see `drawn`.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    side = max(2.4, *(max(image.shape[:2]) / _DPI for image in images))  # inches
    size = (side * columns, (side + 0.3) * rows)
    figure = new_figure(*size, dpi=_DPI)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, image, caption in zip(axes, images, captions, strict=False):
        axis.imshow(image)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel(drawn(caption, class_names, **_CAPTION), fontsize=7)
    for axis in list(figure.axes)[len(images) :]:
        axis.set_axis_off()
    use_fonts(figure)
    figure.savefig(file, format="png", dpi=_DPI)
    return round(size[1] * _DPI), round(size[0] * _DPI)


def confusion_picture(matrix: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The matrix int64[K, K] (row: class, column: what it was taken for), shaded by its share of the row: uint8[H, W, 3]."""
    figure = new_figure(2 + 0.3 * len(names), 1.5 + 0.3 * len(names), dpi=_DPI)
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
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def heat_map(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weights float[h, w] in red, from least to greatest, over a paled image uint8[H, W, 3]; uint8, 112 pixels at least."""
    scale = max(1, math.ceil(112 / image.shape[0]))
    image = image.repeat(scale, axis=0).repeat(scale, axis=1).astype(np.float32) / 255
    # Pale and grey: the image's own light and dark would be taken for the map's.
    grey = 0.55 + 0.45 * np.broadcast_to(image.mean(axis=-1, keepdims=True), image.shape)
    rows, columns = (np.arange(size) * of // size for size, of in zip(image.shape, weights.shape, strict=False))
    low, high = float(weights.min()), float(weights.max())
    share = ((weights - low) / max(high - low, 1e-12))[rows][:, columns]
    opacity = (0.05 + 0.75 * share)[..., None]
    mixed = (1 - opacity) * grey + opacity * colormaps["Reds"](0.25 + 0.75 * share)[..., :3]
    return (np.clip(mixed, 0, 1) * 255).round().astype(np.uint8)


def drawn(text: str, class_names: Sequence[str] = (), *, width: int = 0, lines: int = 1) -> str:
    r"""`text` as matplotlib is to get it, so that every character is drawn as itself.

    A class name that no installed font can write becomes "class 3", other such characters escapes (`\u82b1`). No part is taken
    for mathematics.

    Args:
      text: in one line.
      class_names: the names that may occur in it, in the order of the classes.
      width: characters of a line, if it is to be folded; 0: it is not.
      lines: of a folded text; what is longer ends in an ellipsis.
    """
    text = printable(text)
    for number, name in undrawable(tuple(class_names)).items():
        text = text.replace(name, f"class {number}")
    text = "".join(it if _family_with(it) is not None else it.encode("unicode_escape").decode() for it in text)
    if width:
        text = "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder="…"))
    return text.replace("$", r"\$")


@functools.lru_cache(maxsize=16)
def undrawable(class_names: tuple[str, ...]) -> dict[int, str]:
    """The names that no installed font can write, printable and by their classes' numbers; the longest first."""
    names = {number: printable(name) for number, name in enumerate(class_names)}
    found = [(number, name) for number, name in names.items() if any(_family_with(it) is None for it in name)]
    return dict(sorted(found, key=lambda pair: -len(pair[1])))


def use_fonts(figure: Figure) -> None:
    """Let the figure's texts have the fonts that their characters need besides the default one. Call this before drawing."""
    texts = figure.findobj(Text)
    families = {_family_with(character) for text in texts for character in text.get_text()}
    further = sorted(family for family in families if family)
    if further:
        for text in texts:
            text.set_fontfamily([*text.get_fontfamily(), *further])


@functools.cache
def _family_with(character: str) -> str | None:
    """The family of an installed font that has a character; "" for the default font, None where no font has it."""
    if character == "\n":
        return ""
    if not _SHAPES_TEXT and unicodedata.bidirectional(character) in ("R", "AL"):
        return None
    return next((family for family, file in _files().items() if ord(character) in _characters(file)), None)


@functools.cache
def _files() -> dict[str, str]:
    """The file of each family that is installed, the default one ("") first, then those that are made for many languages."""
    own = matplotlib.get_data_path()  # for mathematics, other than the default one
    plain = {
        font.name: font.fname
        for font in fontManager.ttflist
        if font.weight == 400 and font.style == "normal" and not font.fname.startswith(own)
    }
    families = sorted(plain, key=lambda name: (not name.startswith(("Noto Sans", "DejaVu Sans")), name))
    return {"": str(findfont(FontProperties())), **{name: plain[name] for name in families}}


@functools.cache
def _characters(file: str) -> frozenset[int]:
    try:
        return frozenset(get_font(file).get_charmap())
    except (OSError, RuntimeError):  # e.g. of pictures in colour, which matplotlib cannot draw
        return frozenset()
