"""The paper's Figures 1 and 3, drawn from its tables, with your own results added."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from deit_jax.paper import tables
from deit_jax.reporting.plots import drawn, new_figure, save


class OwnResult(NamedTuple):
    """The result of a finished run."""

    label: str
    data: str  # the evaluation data set
    kind: str  # "no distillation", or a kind of distillation as in tables.FIGURE_3
    epochs: float
    top1: float  # percent
    images_per_second: float | None = None  # inference
    device: str = ""  # where images_per_second was measured


_FAMILIES = (
    # label, marker, colour, predicate on rows of Table 5
    ("RegNetY", "s", "dimgray", lambda row: row.model.startswith("regnety")),
    ("ViT-B/16", "^", "tab:brown", lambda row: not row.model),
    ("DeiT", "o", "tab:blue", lambda row: row.model.startswith("deit") and "distilled" not in row.model),
    ("DeiT distilled, 300 epochs", "D", "tab:orange", lambda row: "distilled" in row.model and row.epochs == 300),
    ("DeiT distilled, 1000 epochs", "P", "tab:red", lambda row: "distilled" in row.model and row.epochs == 1000),
)
# (offset in points, alignment) of the names of points, chosen to avoid overlaps.
_BELOW, _RIGHT = ((0, -13), "center"), ((8, -3), "left")
_PLACES = {
    "RegNetY": _BELOW,
    "ViT-B/16": _BELOW,
    "DeiT": ((-5, -12), "right"),
    "DeiT distilled, 1000 epochs": ((0, 7), "center"),
}
_PLACE_OF = {("DeiT", "DeiT-B 384"): _BELOW, ("RegNetY", "RegNetY-4GF"): _RIGHT}
_PLACE_OF |= {(family, "DeiT-Ti"): _RIGHT for family in _PLACES}
_COLORS = ("tab:purple", "tab:green", "black", "tab:cyan", "tab:pink", "tab:olive")


def throughput_against_top1(path: Path, own: Sequence[OwnResult] = ()) -> None:
    """Draws Figure 1: images/s of inference (logarithmic) against top-1, for the rows of Table 5 and your own results."""
    figure, axis, own_axis = _panels(own)
    for family, marker, color, belongs in _FAMILIES:
        rows = [(row.images_per_second, row) for row in tables.TABLE_5 if belongs(row) and row.images_per_second]
        rows.sort(key=lambda pair: pair[0])
        points = [speed for speed, _ in rows], [row.imagenet for _, row in rows]
        style = "-" if len(rows) > 1 else "none"
        axis.plot(*points, marker=marker, linestyle=style, color=color, label=f"published, V100: {family}")
        for speed, row in rows:
            if family not in _PLACES:
                continue  # other curves name the same models
            name = row.label.replace(" distilled", "")
            place = _PLACE_OF.get((family, name), _PLACES[family])
            _annotate(axis, name.removeprefix("RegNetY-"), speed, row.imagenet, *place, color)
    for result, color in zip(own, _cycle(len(own)), strict=True):
        label = drawn(f"own: {result.label}, {result.data}, {result.device}")
        point = [result.images_per_second], [result.top1]
        own_axis.plot(*point, marker="*", markersize=13, linestyle="none", color=color, label=label)
    for one in {axis, own_axis}:
        one.set_xscale("log")
        one.margins(0.12)
    if own_axis is not axis:  # a narrow range would get tick labels with too many digits
        speeds = [result.images_per_second for result in own if result.images_per_second is not None]
        own_axis.set_xlim(min(speeds) / 3, max(speeds) * 3)
    _finish(
        path, figure, axis, own_axis, x="throughput of inference, images/s",
        title=f"Throughput against accuracy: {tables.SOURCE}, Table 5\n(one V100 16 GB, float32; ImageNet)",
    )  # fmt: skip


_CURVES = {
    "soft distillation": ("v", "dimgray"),
    "hard distillation": ("s", "tab:blue"),
    "hard distillation, token": ("D", "tab:orange"),
    "hard distillation, token, 384": ("P", "tab:red"),
}


def epochs_against_top1(path: Path, own: Sequence[OwnResult] = ()) -> None:
    """Draws Figure 3: epochs against top-1 by kind of distillation. Filled points are in the paper's tables, others read off."""
    figure, axis, own_axis = _panels(own)
    for kind, values in tables.FIGURE_3.items():
        marker, color = _CURVES[kind]
        points = list(zip(tables.FIGURE_3_EPOCHS, values, strict=True))
        axis.plot(*zip(*points, strict=True), color=color, marker=marker, mfc="white", label=f"published: {kind}")
        exact = [point for point in points if point[0] in tables.FIGURE_3_EXACT[kind]]
        axis.plot(*zip(*exact, strict=True), linestyle="none", marker=marker, color=color)
    axis.axhline(
        tables.FIGURE_3_NO_DISTILLATION, color="black", linestyle=":", linewidth=1,
        label=f"published: no distillation, saturated after about 400 epochs (~{tables.FIGURE_3_NO_DISTILLATION})",
    )  # fmt: skip
    kinds = list(dict.fromkeys((result.kind, result.data) for result in own))
    for (kind, data), color in zip(kinds, _cycle(len(kinds)), strict=True):
        results = sorted((r for r in own if (r.kind, r.data) == (kind, data)), key=lambda r: r.epochs)
        style = "-" if len({r.epochs for r in results}) == len(results) > 1 else "none"
        epochs, top1 = [r.epochs for r in results], [r.top1 for r in results]
        label = drawn(f"own: {kind}, {data}")
        own_axis.plot(epochs, top1, marker="*", markersize=12, color=color, linestyle=style, label=label)
        for r in results:
            _annotate(own_axis, r.label, r.epochs, r.top1, *_RIGHT, color)
    own_axis.margins(0.12)
    _finish(
        path, figure, axis, own_axis, x="epochs",
        title=f"Epochs against accuracy: {tables.SOURCE}, Figure 3\n"
        "(DeiT-B, ImageNet; filled: from a table, hollow: read off the plot)",
    )  # fmt: skip


def _panels(own: Sequence[OwnResult]) -> tuple[Figure, Any, Any]:
    """Returns a figure, the axes of the published points and those of your own, which differ if the data set does."""
    if all("imagenet" in result.data.lower() for result in own):
        figure = new_figure(8.0, 5.4)
        axis = figure.subplots()
        return figure, axis, axis
    figure = new_figure(12.5, 5.6)
    axis, own_axis = figure.subplots(1, 2, width_ratios=(1.5, 1))
    return figure, axis, own_axis


def _cycle(count: int) -> list[str]:
    return [_COLORS[i % len(_COLORS)] for i in range(count)]


def _annotate(axis: Any, text: str, x: float, y: float, offset: tuple[int, int], align: str, color: str) -> None:
    axis.annotate(drawn(text), (x, y), offset, textcoords="offset points", fontsize=7.5, color=color, ha=align)


def _finish(path: Path, figure: Figure, axis: Any, own_axis: Any, *, x: str, title: str) -> None:
    axis.set_title(title, fontsize=9)
    if own_axis is not axis:
        own_axis.set_title("own results, on the data named", fontsize=9)
    for one in {axis, own_axis}:
        one.set(xlabel=x, ylabel="top-1, %")
        one.grid(alpha=0.3, which="both")
        ncols = 2 if one is axis else 1
        one.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=ncols, frameon=False)
    save(figure, path)
