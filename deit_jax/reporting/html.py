"""Builds a self-contained HTML page. These functions escape all text except arguments named `html` or `lead`."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from html import escape as escape_markup
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

from deit_jax.printable import printable

_STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")


def escape(text: str) -> str:
    """Escapes markup and control characters."""
    return escape_markup(printable(text))


class Section(NamedTuple):
    """A section of a page; `html` is its content."""

    anchor: str
    title: str
    html: str


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Returns the whole document; `lead` is HTML below the heading."""
    links = "".join(f'<li><a href="#{part.anchor}">{escape(part.title)}</a></li>' for part in sections)
    body = "".join(
        f'<section id="{part.anchor}" aria-labelledby="{part.anchor}-title">\n'
        f'<h2 id="{part.anchor}-title">{escape(part.title)}</h2>\n{part.html}</section>\n'
        for part in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        # An empty icon: otherwise the browser requests one from the server.
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{_STYLE}</style>\n</head>\n<body>\n"
        f'<header>\n<h1>{escape(title)}</h1>\n{lead}<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>\n'
        f"<main>\n{body}</main>\n</body>\n</html>\n"
    )


def paragraph(text: str, kind: str = "") -> str:
    """Returns a paragraph; `kind` is a CSS class, e.g. "note" for missing parts."""
    return f"<p{_class(kind)}>{escape(text)}</p>\n"


def facts(values: Mapping[str, str]) -> str:
    """Returns a list of names and values."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values.items())
    return f"<dl>{items}</dl>\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str, kind: str = "") -> str:
    """Returns a scrollable table; the first cell of a row is its header. `kind`: "numbers" aligns right."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = []
    for first, *rest in rows:
        if not rest:  # a group heading
            lines.append(f'<tr><th scope="rowgroup" colspan="{len(columns)}" class="group">{escape(first)}</th></tr>')
            continue
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    return scrolling(
        f"<table{_class(kind)}><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>\n<tbody>"
        + "\n".join(lines) + "</tbody></table>",
        caption,
    )  # fmt: skip


def scrolling(html: str, label: str) -> str:
    """Returns a box in which wide content scrolls, also by keyboard."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{html}</div>\n'


def details(summary: str, html: str) -> str:
    """Returns collapsible content, initially closed."""
    return f"<details><summary>{escape(summary)}</summary>\n{html}</details>\n"


def picture(pixels: np.ndarray, alternative: str, captions: Sequence[str] = (), kind: str = "") -> str:
    """Returns a figure of an image uint8[H, W, 3] with lines of text below it."""
    height, width = pixels.shape[:2]
    coarse = ' class="coarse"' if max(height, width) < 128 else ""  # enlarged without blurring
    size = f'width="{width}" height="{height}"'
    image = f'<img src="{_data_uri(pixels)}" alt="{escape(alternative)}"{coarse} {size}>'
    lines = "".join(f"<span>{escape(line)}</span>" for line in captions if line)
    return f"<figure{_class(kind)}>{image}" + (f"<figcaption>{lines}</figcaption>" if lines else "") + "</figure>\n"


def grid(pictures: Sequence[str]) -> str:
    """Returns figures side by side, as many per row as fit."""
    return f'<div class="pictures">\n{"".join(pictures)}</div>\n'


# --- Curves ---

# Without matplotlib: seven charts of two curves take 25 ms and 8 kB each (matplotlib: 650 ms and 12 kB each), and have the page's
# font and its light or dark colors; matplotlib's have fixed colors, and the same ids in every chart.

_COLORS = 6  # CSS classes c0 to c5
_WIDTH, _HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 38  # margins; the left one grows with the tick labels
_DIGIT = 7.5  # width of a digit
_MAX_POINTS = 300  # per curve; more are averaged in bins


@dataclasses.dataclass(frozen=True)
class Series:
    """A curve. `color`: number of the color; `dashed`: distinguishes curves of one color; `level`: a horizontal line at y[0]."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0
    dashed: bool = False
    level: bool = False

    def points(self) -> np.ndarray:
        """Returns the finite points float64[N, 2], averaged in bins to at most _MAX_POINTS."""
        points = np.array([self.x, self.y], float).T.reshape(-1, 2)
        points = points[np.isfinite(points).all(axis=1)]
        if len(points) <= _MAX_POINTS:
            return points
        return np.stack([part.mean(axis=0) for part in np.array_split(points, _MAX_POINTS)])


def line_chart(title: str, series: Sequence[Series], *, x_end: float, x_label: str, y_label: str) -> str:
    """Returns a <figure> with curves from x = 0 to `x_end`, a legend and a text alternative; "" without finite points."""
    drawn = [(line, points) for line in series if len(points := line.points())]
    if all(line.level for line, _ in drawn):
        return ""
    ys = np.concatenate([points[:, 1] for _, points in drawn])
    y_low, y_high = float(ys.min()), float(ys.max())
    margin = 0.04 * (y_high - y_low) or abs(y_low) * 0.1 or 1.0
    y_low, y_high = y_low - margin, y_high + margin

    ticks = [(tick, f"{tick:g}") for tick in _ticks(y_low, y_high)]
    left = max(_LEFT, 12 + _DIGIT * max(len(text) for _, text in ticks))

    def px(x: float) -> float:
        return left + x / x_end * (_WIDTH - left - _RIGHT)

    def py(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick, text in ticks:
        y = py(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    bottom = _HEIGHT - _BOTTOM
    for tick in _ticks(0.0, float(x_end)):
        x = min(px(tick), _WIDTH - 14)  # keeps the last label inside the picture
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<line class="axis" x1="{left}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    middle = (left + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    legend, summary = [], []
    for line, points in drawn:
        style = f"c{line.color % _COLORS}" + (" dashed" if line.dashed else "") + (" level" if line.level else "")
        if line.level:
            y = py(float(points[0, 1]))
            parts.append(f'<line class="{style}" x1="{left}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        elif len(points) == 1:
            parts.append(f'<circle class="{style}" cx="{px(points[0, 0]):.1f}" cy="{py(points[0, 1]):.1f}" r="3"/>')
        else:
            path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
            parts.append(f'<polyline class="{style}" points="{path}"/>')
        stroke = f'<line class="{style}" x1="0" x2="24" y1="4" y2="4"/>'
        swatch = f'<svg class="swatch" viewBox="0 0 24 8" aria-hidden="true">{stroke}</svg>'
        legend.append(f"<li>{swatch}{escape(line.name)}</li>")
        first, last = points[0, 1], points[-1, 1]
        summary.append(f"{line.name} {first:.4g}" if line.level else f"{line.name} from {first:.4g} to {last:.4g}")
    alternative = escape(f"{title}, {y_label} over {x_label}: {'; '.join(summary)}.")
    keys = f'<ul class="legend">{"".join(legend)}</ul>' if len(legend) > 1 else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)} <span class="unit">{escape(y_label)}</span></figcaption>\n'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{alternative}">{"".join(parts)}</svg>\n'
        f"{keys}</figure>\n"
    )


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _data_uri(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((256, 256))
    file = io.BytesIO()
    kind = "png" if max(image.size) <= 64 else "jpeg"
    image.save(file, kind, **({"optimize": True} if kind == "png" else {"quality": 88}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _ticks(low: float, high: float) -> list[float]:
    slack = 1e-9 * (high - low)
    return [
        0.0 if math.isclose(tick, 0, abs_tol=slack) else float(tick)
        for tick in MaxNLocator(5).tick_values(low, high)
        if low - slack <= tick <= high + slack
    ]
