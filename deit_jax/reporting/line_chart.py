"""Curves as SVG that is part of an HTML page: it takes the page's colours, light or dark."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from deit_jax.reporting.html import escape

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
