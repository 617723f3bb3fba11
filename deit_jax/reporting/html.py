"""The pieces of a self-contained HTML page. Every text given to these functions is escaped; what is named `html` is not."""

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
    """A text as part of a page: what it would do, as markup or as a control character, is shown instead."""
    return escape_markup(printable(text))


class Section(NamedTuple):
    """A part of a page: its anchor, its heading, and its content as HTML."""

    anchor: str
    title: str
    html: str


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole document; `lead` is HTML below the heading."""
    links = "".join(f'<li><a href="#{part.anchor}">{escape(part.title)}</a></li>' for part in sections)
    body = "".join(
        f'<section id="{part.anchor}" aria-labelledby="{part.anchor}-title">\n'
        f'<h2 id="{part.anchor}-title">{escape(part.title)}</h2>\n{part.html}</section>\n'
        for part in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        # Without an icon of its own a browser asks the server for one.
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{_STYLE}</style>\n</head>\n<body>\n"
        f'<header>\n<h1>{escape(title)}</h1>\n{lead}<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>\n'
        f"<main>\n{body}</main>\n</body>\n</html>\n"
    )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; `kind` is a class of the style sheet: "note" tells what is missing."""
    return f"<p{_class(kind)}>{escape(text)}</p>\n"


def facts(values: Mapping[str, str]) -> str:
    """Named facts."""
    return (
        "<dl>" + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in values.items()) + "</dl>\n"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str, kind: str = "") -> str:
    """A table whose rows are headed by their first cell; it scrolls within its own box. `kind`: "numbers" aligns right."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = []
    for first, *rest in rows:
        if not rest:  # a heading within the table
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
    """A box that what is wider than the page scrolls in, with the keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{html}</div>\n'


def details(summary: str, html: str) -> str:
    """What is folded until it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>\n{html}</details>\n"


def picture(pixels: np.ndarray, alternative: str, captions: Sequence[str] = (), kind: str = "") -> str:
    """A figure of an image uint8[H, W, 3], with lines of text below it."""
    # Few pixels are shown as pixels, not blurred.
    coarse = ' class="coarse"' if max(pixels.shape[:2]) < 128 else ""
    height, width = pixels.shape[:2]
    size = f'width="{width}" height="{height}"'
    image = f'<img src="{_data_uri(pixels)}" alt="{escape(alternative)}"{coarse} {size}>'
    lines = "".join(f"<span>{escape(line)}</span>" for line in captions if line)
    return f"<figure{_class(kind)}>{image}" + (f"<figcaption>{lines}</figcaption>" if lines else "") + "</figure>\n"


def grid(pictures: Sequence[str]) -> str:
    """Figures side by side, as many as there is room for."""
    return f'<div class="pictures">\n{"".join(pictures)}</div>\n'


# --- Curves ---

# Written here, not by matplotlib: seven charts of two curves take 25 ms and 8 kB each (matplotlib: 650 ms and 12 kB each). They
# have the page's colours, light or dark, and its font; matplotlib's have fixed colours, and the same ids in every chart.

COLOURS = 6  # of the page: classes c0 to c5
_WIDTH, _HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 38  # margins; the left one grows with the numbers beside the axis
_DIGIT = 7.5  # width of one
_MOST_POINTS = 300  # of a curve; more are averaged in bins


@dataclasses.dataclass(frozen=True)
class Series:
    """A curve. `colour` is one of COLOURS; `dashed` tells curves of one colour apart; `level`: a horizontal line at y[0]."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dashed: bool = False
    level: bool = False

    def points(self) -> np.ndarray:
        """float64[N, 2] of what is finite, thinned to at most _MOST_POINTS by the means of bins."""
        points = np.array([self.x, self.y], float).T.reshape(-1, 2)
        points = points[np.isfinite(points).all(axis=1)]
        if len(points) <= _MOST_POINTS:
            return points
        return np.stack([part.mean(axis=0) for part in np.array_split(points, _MOST_POINTS)])


def line_chart(title: str, series: Sequence[Series], *, x_end: float, x_label: str, y_label: str) -> str:
    """A <figure> with the curves from x = 0 to `x_end`, a legend and a text alternative; "" if nothing finite is there."""
    drawn = [(line, line.points()) for line in series]
    drawn = [(line, points) for line, points in drawn if len(points)]
    if all(line.level for line, _ in drawn):
        return ""
    ys = np.concatenate([points[:, 1] for _, points in drawn])
    x_low, x_high = 0.0, float(x_end)
    y_low, y_high = _range(float(ys.min()), float(ys.max()), margin=0.04)

    ticks = [(tick, f"{tick:g}") for tick in _ticks(y_low, y_high)]
    left = max(_LEFT, 12 + _DIGIT * max(len(text) for _, text in ticks))

    def px(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (_WIDTH - left - _RIGHT)

    def py(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick, text in ticks:
        y = py(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in _ticks(x_low, x_high):
        # The outermost number stays inside the picture.
        parts.append(
            f'<text x="{min(px(tick), _WIDTH - 14):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:g}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{left}" x2="{_WIDTH - _RIGHT}" y1="{_HEIGHT - _BOTTOM}" y2="{_HEIGHT - _BOTTOM}"/>'
    )
    middle = (left + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    legend, summary = [], []
    for line, points in drawn:
        style = f"c{line.colour % COLOURS}" + (" dashed" if line.dashed else "") + (" level" if line.level else "")
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
        summary.append(
            f"{line.name} {points[0, 1]:.4g}"
            if line.level
            else f"{line.name} from {points[0, 1]:.4g} to {points[-1, 1]:.4g}"
        )
    alternative = escape(f"{title}, {y_label} over {x_label}: {'; '.join(summary)}.")
    keys = f'<ul class="legend">{"".join(legend)}</ul>' if len(legend) > 1 else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)} <span class="unit">{escape(y_label)}</span></figcaption>\n'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{alternative}">{"".join(parts)}</svg>\n'
        f"{keys}</figure>\n"
    )


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _data_uri(pixels: np.ndarray, most: int = 256) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((most, most))
    file = io.BytesIO()
    if max(image.size) <= 64:
        image.save(file, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(file, "JPEG", quality=88)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _range(low: float, high: float, *, margin: float) -> tuple[float, float]:
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    pad = margin * (high - low)
    return low - pad, high + pad


def _ticks(low: float, high: float) -> list[float]:
    slack = 1e-9 * (high - low)
    return [
        0.0 if math.isclose(tick, 0, abs_tol=slack) else float(tick)
        for tick in MaxNLocator(5).tick_values(low, high)
        if low - slack <= tick <= high + slack
    ]
