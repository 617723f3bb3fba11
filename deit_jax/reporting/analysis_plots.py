"""Pictures of --mode=analyze."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from deit_jax.paper import tables
from deit_jax.reporting.fonts import drawn, use_fonts

_DPI = 130


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, which no window system needs to know of."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix, and its folder if there is none."""
    use_fonts(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)


def disagreement(path: Path, names: Sequence[str], matrix: np.ndarray, *, title: str) -> None:
    """The matrix [n, n] of shares in 0..1 as coloured cells with their numbers."""
    count = len(names)
    wrapped = ["\n".join(drawn(part, width=30, lines=3) for part in name.split(", ")) for name in names]
    figure = new_figure(0.85 * count + 3.2, 0.65 * count + 2.2)
    axis = figure.subplots()
    top = max(float(matrix.max()), 1e-9)
    shown = axis.imshow(matrix, cmap="Blues", vmin=0, vmax=top, aspect="auto")
    for row in range(count):
        for column in range(count):
            dark = matrix[row, column] > 0.6 * top
            text = f"{matrix[row, column]:.3f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    axis.set_xticks(range(count), wrapped, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(count), wrapped, fontsize=8)
    axis.tick_params(length=0)
    axis.set_title(drawn(title), fontsize=10)
    figure.colorbar(shown, label="share of images", shrink=0.8)
    save(figure, path)


def token_curves(path: Path, curves: Mapping[str, Mapping[str, Any]]) -> None:
    """Cosine of class and distillation token by layer, a curve for each classifier, and the paper's two points."""
    depth = max(len(curve["after_block"]) for curve in curves.values())
    figure = new_figure(max(6.5, 0.45 * depth + 3), 4.2)
    axis = figure.subplots()
    for label, curve in curves.items():
        values = [curve["learned"], curve["with_position"], *curve["after_block"]]
        (line,) = axis.plot(range(-1, len(values) - 1), values, marker="o", markersize=4, label=drawn(label))
        axis.plot(
            [len(values) - 1], [curve["after_norm"]], marker="s", markersize=6, color=line.get_color(), mfc="none"
        )
    points = [tables.TOKEN_COSINE_INPUT, tables.TOKEN_COSINE_LAST]
    axis.plot(
        [-1, depth], points, linestyle="none", marker="*", markersize=11, color="0.35",
        label=f"published: DeiT-B, ImageNet ({points[0]} as learned, {points[1]} at the last layer)",
    )  # fmt: skip
    every = max(1, round(depth / 12))
    blocks = [i for i in range(1, depth + 1) if i % every == 0 or depth <= 12]
    ticks = {-1: "as\nlearned", 0: "+ posi-\ntion", **{i: str(i) for i in blocks}, depth + 1: "norm"}
    axis.set_xticks(list(ticks), list(ticks.values()), fontsize=8)
    axis.set_xlabel("after block (square: after the final norm)")
    axis.set_ylabel("cosine of class and distillation token")
    axis.set_ylim(min(0.0, *(v for c in curves.values() for v in (c["learned"], c["with_position"], *c["after_block"]))) - 0.05,
                  1.05)  # fmt: skip
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.22), frameon=False)
    save(figure, path)


def position_norms(path: Path, norms: Mapping[str, np.ndarray], top1: Mapping[str, float]) -> None:
    """The l2 norm of each position's embedding, float32[rows, columns] by name, on one colour scale, and top-1 in percent."""
    figure = new_figure(3.0 * len(norms) + 0.9, 3.6)
    axes = figure.subplots(1, len(norms), squeeze=False)[0]
    low, high = min(float(n.min()) for n in norms.values()), max(float(n.max()) for n in norms.values())
    for axis, (label, values) in zip(axes, norms.items(), strict=True):
        shown = axis.imshow(values, vmin=low, vmax=high, cmap="viridis")
        axis.set_title(label, fontsize=9)
        axis.set_xlabel(f"mean norm {values.mean():.3f}\ntop-1 {top1[label]:.2f} %", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(shown, ax=list(axes), label="l2 norm of a patch's embedding", shrink=0.75)
    save(figure, path)


def attention_overview(path: Path, title: str, image: np.ndarray, panels: Mapping[str, np.ndarray]) -> None:
    """An image uint8[H, W, 3], and maps float32[h, w] over it by title; each map has a colour scale of its own."""
    figure = new_figure(2.5 * (len(panels) + 1), 3.3)
    axes = figure.subplots(1, len(panels) + 1, squeeze=False)[0]
    axes[0].imshow(image)
    axes[0].set_title(f"{drawn(title, width=36, lines=3)}\nas the network sees it", fontsize=9)
    for axis, (label, values) in zip(axes[1:], panels.items(), strict=True):
        _overlay(axis, image, values)
        axis.set_title(label, fontsize=9)
        axis.set_xlabel(f"to patches {values.sum():.2f}\nmost {values.max():.3f}, even {values.mean():.3f}", fontsize=8)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    save(figure, path)


def attention_heads(path: Path, title: str, image: np.ndarray, maps: np.ndarray) -> None:
    """Maps float32[blocks, heads, h, w] of one token over the image uint8[H, W, 3]: a row for each block, a column for a head."""
    blocks, heads = maps.shape[:2]
    figure = new_figure(1.15 * heads + 0.8, 1.15 * blocks + 0.7)
    axes = figure.subplots(blocks, heads, squeeze=False)
    for block in range(blocks):
        for head in range(heads):
            axis = axes[block, head]
            _overlay(axis, image, maps[block, head])
            axis.set_xticks([])
            axis.set_yticks([])
            if block == 0:
                axis.set_title(f"head {head + 1}", fontsize=8)
            if head == 0:
                axis.set_ylabel(f"block {block + 1}", fontsize=8)
    figure.suptitle(drawn(title, width=max(28, 14 * heads), lines=4), fontsize=9)
    save(figure, path)


def _overlay(axis: Any, image: np.ndarray, values: np.ndarray) -> None:
    height, width = image.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    # A pale image: its own light and dark would be taken for the map's.
    axis.imshow(image.mean(axis=-1), cmap="gray", vmin=-300, vmax=255, extent=extent)
    share = values / max(float(values.max()), 1e-12)
    axis.imshow(values, cmap="Reds", alpha=0.15 + 0.75 * share, extent=extent, interpolation="nearest", vmin=0)
