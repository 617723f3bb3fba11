"""Draws pictures with matplotlib, using installed fonts that have the characters; `drawn` replaces other characters."""

from __future__ import annotations

import functools
import math
import textwrap
import unicodedata
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

from deit_jax.printable import printable

TOKEN_NAMES = ("class", "distillation")
_SHAPES_TEXT = matplotlib.__version_info__ >= (3, 11)  # joins letters, and draws right-to-left text
_DPI = 110

# Characters per line, and lines, so that a long class name fits below its picture.
_CAPTION, _LABEL = {"width": 40, "lines": 6}, {"width": 32}


def new_figure(width: float, height: float, *, dpi: int = 100) -> Figure:
    """Returns an empty figure (size in inches) that needs no window system."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path, *, dpi: int = 130) -> None:
    """Writes a figure in the format of the path's suffix; creates its folder if needed."""
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
) -> None:
    """Writes a grid of images in the format of the path's suffix.

    columns: the column titles. images: uint8[rows, columns, H, W, 3]. captions: the text below each image, "" for none.
    class_names: those used in the captions; see `drawn`.
    """
    rows, count = images.shape[:2]
    figure = new_figure(1.9 * count, 2.35 * rows + 0.3)
    axes = figure.subplots(rows, count, squeeze=False)
    for (row, column), axis in np.ndenumerate(axes):
        _show(axis, images[row, column], captions[row][column], class_names)
        if row == 0:
            axis.set_title(columns[column], fontsize=9)
    save(figure, path, dpi=_DPI)


def captioned_grid(
    file: BytesIO, images: Sequence[np.ndarray], captions: Sequence[str], *, class_names: Sequence[str] = ()
) -> tuple[int, int]:
    """Writes images, each uint8[H, W, 3], in rows of four with captions as a PNG to `file`.

    class_names: those used in the captions; see `drawn`. Returns (height, width) in pixels.
    """
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    side = max(2.4, *(max(image.shape[:2]) / _DPI for image in images))  # inches
    size = (side * columns, (side + 0.3) * rows)
    figure = new_figure(*size, dpi=_DPI)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, image, caption in zip(axes, images, captions, strict=False):
        _show(axis, image, caption, class_names)
    for axis in axes[len(images) :]:
        axis.set_axis_off()
    use_fonts(figure)
    figure.savefig(file, format="png", dpi=_DPI)
    return round(size[1] * _DPI), round(size[0] * _DPI)


def _show(axis: Any, image: np.ndarray, caption: str, class_names: Sequence[str]) -> None:
    axis.imshow(image)
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(drawn(caption, class_names, **_CAPTION), fontsize=7)


def confusion_picture(matrix: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Draws the confusion matrix int64[K, K] (row: class, column: prediction), shaded by share of the row: uint8[H, W, 3]."""
    figure = new_figure(2 + 0.3 * len(names), 1.5 + 0.3 * len(names), dpi=_DPI)
    axis = figure.subplots()
    labels = [drawn(name, names, **_LABEL) for name in names]
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, str(count), ha="center", va="center", fontsize=6, color=color)
    axis.set_xticks(range(len(names)), labels, rotation=90, fontsize=7)
    axis.set_yticks(range(len(names)), labels, fontsize=7)
    axis.set_xlabel("prediction", fontsize=8)
    axis.set_ylabel("class", fontsize=8)
    use_fonts(figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def heat_map(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Draws weights float[h, w] in red over a pale image uint8[H, W, 3]; returns uint8, at least 112 pixels high."""
    scale = max(1, math.ceil(112 / image.shape[0]))
    image = image.repeat(scale, axis=0).repeat(scale, axis=1).astype(np.float32) / 255
    # Pale and gray, so that the image's brightness is not mistaken for the map's.
    gray = 0.55 + 0.45 * np.broadcast_to(image.mean(axis=-1, keepdims=True), image.shape)
    rows, columns = (np.arange(size) * of // size for size, of in zip(image.shape, weights.shape, strict=False))
    low, high = float(weights.min()), float(weights.max())
    share = ((weights - low) / max(high - low, 1e-12))[rows][:, columns]
    opacity = (0.05 + 0.75 * share)[..., None]
    mixed = (1 - opacity) * gray + opacity * colormaps["Reds"](0.25 + 0.75 * share)[..., :3]
    return (np.clip(mixed, 0, 1) * 255).round().astype(np.uint8)


def drawn(text: str, class_names: Sequence[str] = (), *, width: int = 0, lines: int = 1) -> str:
    r"""Returns `text` for matplotlib, so that every character is drawn literally, without math mode.

    A class name that no installed font can draw becomes "class 3"; other such characters become escapes (`\u82b1`).

    Args:
      text: a single line.
      class_names: the names that may occur in it, in class order.
      width: characters per line; 0: do not wrap.
      lines: the maximum number of lines; longer text ends in an ellipsis.
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
    """Returns the names that no installed font can draw, printable, by class number; the longest first."""
    names = {number: printable(name) for number, name in enumerate(class_names)}
    pairs = [(number, name) for number, name in names.items() if any(_family_with(it) is None for it in name)]
    return dict(sorted(pairs, key=lambda pair: -len(pair[1])))


def use_fonts(figure: Figure) -> None:
    """Adds the fonts that the figure's texts need to the default one. Call this before drawing."""
    texts = figure.findobj(Text)
    families = {_family_with(character) for text in texts for character in text.get_text()}
    if added := sorted(family for family in families if family):
        for text in texts:
            text.set_fontfamily([*text.get_fontfamily(), *added])


@functools.cache
def _family_with(character: str) -> str | None:
    """Returns the family of an installed font that has a character; "" for the default font, None if no font has it."""
    if character == "\n":
        return ""
    if not _SHAPES_TEXT and unicodedata.bidirectional(character) in ("R", "AL"):
        return None
    return next((family for family, file in _files().items() if ord(character) in _characters(file)), None)


@functools.cache
def _files() -> dict[str, str]:
    """Returns the file of each installed family: first the default one (""), then those for many languages."""
    own = matplotlib.get_data_path()  # the default one, and math fonts
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
    except (OSError, RuntimeError):  # e.g. color fonts, which matplotlib cannot draw
        return frozenset()
