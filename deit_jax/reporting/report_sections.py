"""Builds the sections of report.html from given values; opens and computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from deit_jax.console import HEAD_NAMES, Row
from deit_jax.reporting import html
from deit_jax.reporting.fields import changed, flat, text
from deit_jax.reporting.html import Section, Series, escape, line_chart
from deit_jax.reporting.plots import TOKEN_NAMES, heat_map

MOST_CLASSES_OF_A_MATRIX = 30
_WORST_CLASSES = 20
Rows = Sequence[Mapping[str, float]]  # rows of metrics.jsonl


def results(rows: Sequence[Row], extra: Mapping[str, Sequence[Row]], *, title: str, notes: Sequence[str]) -> Section:
    """Returns the table of results; rows, extra groups of rows and notes as for `console.summary`."""
    lines: list[Sequence[str]] = [_result_line(row) for row in rows]
    for heading, group in extra.items():
        lines += [(heading,), *(_result_line(row) for row in group)]
    shown = html.table(("model", "top-1 %", "top-5 %", "loss"), lines, caption=title, kind="numbers")
    return Section("results", "Results", shown + "".join(html.paragraph(note, "muted") for note in notes))


def _result_line(row: Row) -> list[str]:
    name, *values = row
    return [name, *("" if v is None else f"{v:.{d}f}" for v, d in zip(values, (2, 2, 4), strict=True))]


class _Axis:
    """The x axis of a run: epochs, or steps for a run of less than one epoch."""

    def __init__(self, rows: Rows, steps_per_epoch: int) -> None:
        self.rows = rows
        self.end = max((row["step"] for row in rows), default=0)
        self.unit = steps_per_epoch if self.end >= steps_per_epoch else 1

    def series(self, name: str, label: str, *, scale: float = 1.0, **style: Any) -> Series:
        rows = [row for row in self.rows if row.get(name) is not None]
        return Series(label, [row["step"] / self.unit for row in rows], [scale * row[name] for row in rows], **style)

    def chart(self, title: str, series: Sequence[Series], y_label: str) -> str:
        x_label = "step" if self.unit == 1 else "epoch"
        return line_chart(title, series, x_end=self.end / self.unit, x_label=x_label, y_label=y_label)


def curves(rows: Rows, *, steps_per_epoch: int, teacher_top1: float | None) -> Section:
    """Returns curves of loss, accuracy by head, learning rate and gradient norm."""
    axis = _Axis(rows, steps_per_epoch)

    def by_head(value: str) -> list[Series]:
        return [
            axis.series(f"eval/{weights}/{head}/{value}", f"{weights}, {label}", color=color, dashed=weights == "ema")
            for weights in ("raw", "ema")
            for color, (head, label) in enumerate(HEAD_NAMES.items())
        ]

    accuracy = by_head("top1")
    if teacher_top1 is not None:
        accuracy.append(Series("teacher", [0.0], [teacher_top1], color=4, level=True))
    training = [axis.series("train/loss", "all", color=4)]
    if any("train/distillation_loss" in row for row in rows):
        training += [
            axis.series("train/class_loss", "class head", color=0),
            axis.series("train/distillation_loss", "distillation", color=1),
        ]
    names = sorted({name for row in rows for name in row if name.startswith("train/feature_")})
    features = [axis.series(name, name.removeprefix("train/feature_"), color=k) for k, name in enumerate(names)]
    charts = [
        ("Training loss", training, "nats"),
        *([("Feature losses, without their weights", features, "")] if features else []),
        ("Accuracy on the evaluation images", accuracy, "top-1 %"),
        ("Loss on the evaluation images", by_head("loss"), "nats"),
        ("Learning rate", [axis.series("train/learning_rate", "learning rate")], ""),
        ("Gradient norm", [axis.series("train/grad_norm", "gradient norm")], "l2, before clipping"),
    ]
    drawn = "".join(axis.chart(title, series, y) for title, series, y in charts)
    content = f'<div class="charts">\n{drawn}</div>\n' if drawn else html.paragraph("metrics.jsonl is empty.", "note")
    return Section("curves", "Curves", content)


def configuration(
    fields: Mapping[str, Any], defaults: Mapping[str, Any], unused: Callable[[str], bool] = lambda name: False
) -> Section:
    """Returns the fields that differ from the defaults, and all fields; both nested, of JSON types.

    unused: whether a field, by its dotted name, had no part in the run: it is left out of the first list and marked in the other.
    """
    rows = [
        (name, text(value), text(default)) for name, value, default in changed(fields, defaults) if not unused(name)
    ]
    own = [row for row in rows if not row[0].startswith("teacher.recipe.")]
    teachers = [row for row in rows if row[0].startswith("teacher.recipe.")]
    columns, caption = ("field", "value", "default"), "Fields that differ from the defaults"
    content = html.table(columns, own, caption=f"{caption} ({len(own)} fields)", kind="fields")
    if teachers:
        table = html.table(columns, teachers, caption=caption, kind="fields")
        content += html.details(f"{len(teachers)} fields of the teacher's recipe", table)
    every = [(name, text(value) + (" (not used)" if unused(name) else "")) for name, value in flat(fields)]
    table = html.table(("field", "value"), every, caption="Configuration", kind="fields")
    content += html.details(f"All {len(every)} fields", table)
    return Section("configuration", "Configuration", content)


def training_images(images: np.ndarray, targets: Sequence[str]) -> Section:
    """Returns images uint8[B, H, W, 3] after augmentation, and the classes and shares of their targets."""
    pictures = [
        html.picture(image, f"training image of {target}, augmented", [target])
        for image, target in zip(images, targets, strict=True)
    ]
    lead = html.paragraph(
        "The first images of the first step, cropped, augmented and mixed, as the model saw them, with the shares of the classes "
        "in their targets, without label smoothing."
    )
    return Section("training-images", "Training images", lead + html.grid(pictures))


def confusion(matrix: np.ndarray, names: Sequence[str], sample: str, *, numbered_in_the_log: bool = False) -> Section:
    """Returns the confusion matrix int64[K, K] (row: class, column: prediction), or the worst of many classes.

    numbered_in_the_log: whether pictures in the run's log show numbers of classes whose names no font can draw.
    """
    title = "Confusion matrix"
    totals, right = matrix.sum(axis=1), np.diagonal(matrix)
    lead = html.paragraph(
        f"{int(right.sum()):,} of {int(totals.sum()):,} right ({_percent(right.sum(), totals.sum())} %): {sample}"
    )
    if numbered_in_the_log:
        lead += html.paragraph(
            "No installed font has the characters of some class names: the pictures in the run's log call these by their number "
            "(from 0, in class order).",
            "muted",
        )
    if len(names) <= MOST_CLASSES_OF_A_MATRIX:
        head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
        lines = []
        for row, name in enumerate(names):
            cells = []
            for column, count in enumerate(matrix[row]):
                kind = ("right" if row == column else "") + ("" if count else " zero")
                share = count / max(totals[row], 1)
                cells.append(f'<td class="{kind.strip()}" style="--share:{share:.3f}">{count}</td>')
            lines.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
        caption = "Rows: classes, columns: predictions"
        content = html.scrolling(
            f'<table class="confusion"><caption>{caption}</caption><thead><tr><td></td>{head}</tr></thead>\n<tbody>'
            + "\n".join(lines) + "</tbody></table>",
            title,
        )  # fmt: skip
        return Section("confusion", title, lead + content)
    shares = np.where(totals > 0, right / np.maximum(totals, 1), 2.0)  # classes without images come last
    worst = [k for k in np.argsort(shares, kind="stable")[:_WORST_CLASSES] if totals[k]]
    rows = []
    for k in worst:
        others = matrix[k].copy()
        others[k] = 0
        other = int(np.argmax(others))
        mistake = f"{names[other]} ({others[other]})" if others[other] else ""
        rows.append((names[k], str(totals[k]), _percent(right[k], totals[k]), mistake))
    columns = ("class", "images", "right %", "most often predicted instead")
    table = html.table(columns, rows, caption=f"The {len(rows)} worst of {len(names):,} classes", kind="numbers")
    return Section("confusion", "Worst classes", lead + table)


def _percent(part: float, whole: float) -> str:
    return f"{100 * float(part) / max(float(whole), 1):.1f}"


def predictions(
    samples: Mapping[str, Sequence[tuple[np.ndarray, str, Sequence[tuple[str, float]]]]], note: str
) -> Section:
    """Returns samples by heading ("Wrong ..." or "Right ..."): image uint8[H, W, 3], class, and answers with probabilities."""
    parts = [html.paragraph(note)]
    for heading, pictures in samples.items():
        parts.append(f"<h3>{escape(heading)}</h3>\n")
        kind = "right" if heading.startswith("Right") else "wrong"
        shown = []
        for image, label, answers in pictures:
            lines = [f"{100 * probability:.1f} % {name}" for name, probability in answers]
            alternative = f"evaluation image of {label}, predicted as {answers[0][0]} with {100 * answers[0][1]:.1f} %"
            shown.append(html.picture(image, alternative, [f"is {label}", *lines], kind))
        parts.append(html.grid(shown) if shown else html.paragraph("None."))
    return Section("predictions", "Sample predictions", "".join(parts))


def attention(names: Sequence[str], images: np.ndarray, maps: np.ndarray, rollout: np.ndarray) -> Section:
    """Returns attention maps. images: uint8[B, H, W, 3]; maps: float32[B, L, heads, P, h, w]; rollout: float32[B, P, h, w]."""
    parts = [
        html.paragraph(
            f"Last block: the attention of a token to the patches, mean of {maps.shape[2]} heads. Rollout: through all "
            f"{maps.shape[1]} blocks (Abnar and Zuidema, 2020). Red marks the largest weights of a map."
        )
    ]
    for name, image, overlays in zip(names, images, _overlays(images, maps, rollout), strict=True):
        pictures = [html.picture(image, f"evaluation image of {name}", [name, "input of the network"])]
        for token, kind, overlay in overlays:
            alternative = f"attention of the {token} token, {kind}, over the image of {name}"
            pictures.append(html.picture(overlay, alternative, [f"{token} token", kind]))
        parts.append(html.grid(pictures))
    return Section("attention", "Attention", "".join(parts))


def attention_pictures(
    names: Sequence[str], images: np.ndarray, maps: np.ndarray, rollout: np.ndarray
) -> tuple[list[np.ndarray], list[str]]:
    """Returns the maps of `attention` over their images, each uint8[H, W, 3], and their captions."""
    pictures, captions = [], []
    for name, overlays in zip(names, _overlays(images, maps, rollout), strict=True):
        pictures += [overlay for _, _, overlay in overlays]
        captions += [f"{name}: {token} token, {kind}" for token, kind, _ in overlays]
    return pictures, captions


def _overlays(images: np.ndarray, maps: np.ndarray, rollout: np.ndarray) -> Iterator[list[tuple[str, str, np.ndarray]]]:
    """Yields the maps over each image: (token, kind of map, uint8[H, W, 3])."""
    for image, by_block, rolled in zip(images, maps, rollout, strict=True):
        kinds = (("last block", by_block[-1].mean(axis=0)), ("rollout", rolled))
        yield [
            (token, kind, heat_map(image, weights))
            for kind, values in kinds
            for token, weights in zip(TOKEN_NAMES, values, strict=False)
        ]


def throughput(rows: Rows, *, steps_per_epoch: int) -> Section:
    """Returns the speed of training, from the rows that have one."""
    timed = [row for row in rows if row.get("images_per_second")]
    if not timed:
        return left_out("throughput", "Throughput", "the run was too short to be timed")

    def median(name: str) -> float | None:
        values = [row[name] for row in timed if row.get(name) is not None]
        return float(np.median(values)) if values else None

    shown = {
        "images per second": ("images_per_second", "{:,.0f}", 1),
        "images per second and device": ("images_per_second_per_device", "{:,.0f}", 1),
        "model TFLOP/s per device": ("model_tflops_per_second", "{:.4g}", 1),
        "MFU (model FLOPs utilization)": ("mfu", "{:.1f} %", 100),
        "MFU of the teacher": ("mfu_teacher", "{:.1f} %", 100),
        "waiting for data": ("data_wait", "{:.1f} % of the time", 100),
    }
    rates = {
        label: form.format(scale * value)
        for label, (name, form, scale) in shown.items()
        if (value := median(name)) is not None
    }
    if "mfu" not in timed[-1]:
        rates["MFU (model FLOPs utilization)"] = "unknown: the device's peak is not listed (config.log.peak_tflops)"
    axis = _Axis(rows, steps_per_epoch)
    charts = axis.chart("Training speed", [axis.series("images_per_second", "images/s")], "images/s")
    charts += axis.chart("Waiting for data", [axis.series("data_wait", "waiting", scale=100, color=1)], "% of the time")
    lead = html.paragraph(f"Training only; medians of {len(timed):,} logged intervals.")
    return Section("throughput", "Throughput", lead + html.facts(rates) + f'<div class="charts">\n{charts}</div>\n')


def environment(ran: Mapping[str, str] | None, written: Mapping[str, str]) -> Section:
    """Returns where the run ended, if recorded, and where the report was written; from `environment.environment`."""
    if ran is None:
        content = html.paragraph("The environment of the run is not recorded in its folder.", "note")
    else:
        content = "<h3>End of the run</h3>\n" + html.facts(ran)
    if ran != written:
        content += "<h3>This page</h3>\n" + html.facts(written)
    return Section("environment", "Environment", content)


def left_out(anchor: str, title: str, reason: str) -> Section:
    """Returns a section that only says why it is empty."""
    return Section(anchor, title, html.paragraph(f"Left out: {reason}", "note"))
