"""Output of --mode=analyze: JSON files, tables and pictures in a folder, and tables on the console."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deit_jax import console
from deit_jax.modes.attention_animation import attention_animation
from deit_jax.paper import tables
from deit_jax.printable import printable
from deit_jax.reporting.plots import TOKEN_NAMES, drawn, new_figure, save
from deit_jax.storage.files import replace_file, write_json


@dataclasses.dataclass(frozen=True)
class Report:
    """Writes to the existing `folder`. Every JSON file contains `facts` (data, images, classifiers)."""

    folder: Path
    facts: Mapping[str, Any]

    def disagreement(self, names: Sequence[str], matrix: np.ndarray) -> dict[str, Any]:
        """Writes disagreement.json, .md and .png for the shares [n, n] in 0..1. Returns the content of the JSON file."""
        title = f"Share of {self.facts['images']:,} images decided differently"
        result = {
            **self.facts,
            "names": list(names),
            "matrix": [[float(value) for value in row] for row in matrix],
            "published": {
                "source": f"{tables.SOURCE}, Table 4, ImageNet",
                "names": list(tables.TABLE_4_NAMES),
                "matrix": [list(row) for row in tables.TABLE_4],
            },
        }
        write_json(self.folder / "disagreement.json", result)
        text = f"# {title}\n\nOf {printable(self.facts['data'])}.\n\n{_markdown(names, matrix)}\n"
        text += "".join(f"- {printable(f'{label}: {what}')}\n" for label, what in self.facts["classifiers"].items())
        text += f"\nPublished ({tables.SOURCE}, Table 4, on ImageNet's 50,000 validation images):\n\n"
        replace_file(self.folder / "disagreement.md", text + _markdown(tables.TABLE_4_NAMES, tables.TABLE_4))
        plot_disagreement(self.folder / "disagreement.png", names, matrix, title=title)
        _show_matrix(f"{title} ({self.facts['data']})", names, matrix)
        _show_matrix(f"published: {tables.SOURCE}, Table 4, ImageNet", tables.TABLE_4_NAMES, tables.TABLE_4)
        return result

    def tokens(self, curves: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Writes tokens.json and .png from `token_cosines` by classifier. Returns the content of the JSON file."""
        source = f"{tables.SOURCE}, section 4, DeiT-B on ImageNet"
        figures = {"learned": tables.TOKEN_COSINE_INPUT, "last_layer": tables.TOKEN_COSINE_LAST}
        result = {**self.facts, "cosines": dict(curves), "published": {"source": source, **figures}}
        write_json(self.folder / "tokens.json", result)
        plot_tokens(self.folder / "tokens.png", curves)
        rows = [
            (label, f"{c['learned']:.3f}", f"{c['with_position']:.3f}", "  ".join(f"{value:.3f}" for value in c["after_block"]),
             f"{c['after_norm']:.3f}")
            for label, c in curves.items()
        ]  # fmt: skip
        last = f"last: {figures['last_layer']:.2f}"
        rows.append((f"published ({source})", f"{figures['learned']:.2f}", "", last, ""))
        columns = ("network", "as learned", "+ position", "after each block", "after the norm")
        console.table("Cosine of class and distillation token, mean over the images", columns, rows)
        return result

    def position_embedding(
        self, table: Mapping[str, Mapping[str, Any]], norms: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """Writes position_embedding.json and .png: norms and accuracy by interpolation. Returns the content of the JSON file."""
        result = {**self.facts, "versions": dict(table)}
        write_json(self.folder / "position_embedding.json", result)
        top1 = {label: row["top1"] for label, row in table.items()}
        plot_position_norms(self.folder / "position_embedding.png", norms, top1)
        rows = [
            (label, f"{row['norm_mean']:.4f}", f"{row['norm_min']:.4f} to {row['norm_max']:.4f}", f"{row['top1']:.2f}")
            for label, row in table.items()
        ]
        title = "Position embedding without fine-tuning (published: bilinear lowers the norms and the accuracy)"
        console.table(title, ("interpolation", "mean l2 norm", "range", "top-1 %"), rows)
        return result

    def attention(self, names: Sequence[str], images: np.ndarray, maps: np.ndarray, rollout: np.ndarray) -> None:
        """Writes attention.npz, and for each image an overview, an animation by block and a picture of every block and head.

        Args:
          names: numbered names, "0_name".
          images: uint8[B, H, W, 3].
          maps: float32[B, L, heads, P, h, w].
          rollout: float32[B, P, h, w].
        """
        np.savez_compressed(self.folder / "attention.npz", names=list(names), maps=maps, rollout=rollout)
        tokens = TOKEN_NAMES[: maps.shape[3]]
        for name, image, by_block, rolled in zip(names, images, maps, rollout, strict=True):
            title = name.partition("_")[2]  # without the number
            last = by_block[-1].mean(axis=0)
            heads = f"last block\nmean of {by_block.shape[1]} heads"
            panels = {f"{token} token, {heads}": last[i] for i, token in enumerate(tokens)}
            panels |= {f"{token} token, rollout\nall blocks": rolled[i] for i, token in enumerate(tokens)}
            plot_attention(self.folder / f"attention_{name}.png", title, image, panels)
            animation = attention_animation(title, image, by_block.mean(axis=1), tokens)
            replace_file(self.folder / f"attention_{name}.svg", animation)
            for i, token in enumerate(tokens):
                path = self.folder / f"attention_{name}_{token}_heads.png"
                plot_attention_heads(path, f"{title}: attention of the {token} token", image, by_block[:, :, i])


def _markdown(names: Sequence[str], matrix: Any) -> str:
    names = [printable(name).replace("|", "\\|") for name in names]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for name, row in zip(names, matrix, strict=True):
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row) + " |")
    return "\n".join(lines) + "\n"


def _show_matrix(title: str, names: Sequence[str], matrix: Any) -> None:
    # The columns are numbered because names would not fit.
    numbered = enumerate(zip(names, matrix, strict=True), 1)
    rows = [(f"{i} {name}", *(f"{value:.3f}" for value in row)) for i, (name, row) in numbered]
    console.table(title, ("", *map(str, range(1, len(rows) + 1))), rows)


def plot_disagreement(path: Path, names: Sequence[str], matrix: np.ndarray, *, title: str) -> None:
    """Plots the matrix [n, n] of shares in 0..1 as coloured cells with numbers."""
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


def plot_tokens(path: Path, curves: Mapping[str, Mapping[str, Any]]) -> None:
    """Plots the cosine of class and distillation token by layer, one curve per classifier, with the paper's two points."""
    depth = max(len(curve["after_block"]) for curve in curves.values())
    figure = new_figure(max(6.5, 0.45 * depth + 3), 4.2)
    axis = figure.subplots()
    for label, curve in curves.items():
        values = [curve["learned"], curve["with_position"], *curve["after_block"]]
        (line,) = axis.plot(range(-1, len(values) - 1), values, marker="o", markersize=4, label=drawn(label))
        norm = [curve["after_norm"]]
        axis.plot([len(values) - 1], norm, marker="s", markersize=6, color=line.get_color(), mfc="none")
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
    lowest = min(0.0, *(v for c in curves.values() for v in (c["learned"], c["with_position"], *c["after_block"])))
    axis.set_ylim(lowest - 0.05, 1.05)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.22), frameon=False)
    save(figure, path)


def plot_position_norms(path: Path, norms: Mapping[str, np.ndarray], top1: Mapping[str, float]) -> None:
    """Plots l2 norms of position embeddings, float32[rows, columns] by name, on one colour scale, with top-1 in percent."""
    figure = new_figure(3.0 * len(norms) + 0.9, 3.6)
    axes = figure.subplots(1, len(norms), squeeze=False)[0]
    low, high = min(float(n.min()) for n in norms.values()), max(float(n.max()) for n in norms.values())
    for axis, (label, values) in zip(axes, norms.items(), strict=True):
        shown = axis.imshow(values, vmin=low, vmax=high, cmap="viridis")
        axis.set_title(label, fontsize=9)
        axis.set_xlabel(f"mean norm {values.mean():.3f}\ntop-1 {top1[label]:.2f} %", fontsize=9)
        axis.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=list(axes), label="l2 norm of a patch's embedding", shrink=0.75)
    save(figure, path)


def plot_attention(path: Path, title: str, image: np.ndarray, panels: Mapping[str, np.ndarray]) -> None:
    """Plots an image uint8[H, W, 3] and maps float32[h, w] over it, by title; each map has its own colour scale."""
    figure = new_figure(2.5 * (len(panels) + 1), 3.3)
    axes = figure.subplots(1, len(panels) + 1, squeeze=False)[0]
    axes[0].imshow(image)
    axes[0].set_title(f"{drawn(title, width=36, lines=3)}\nas the network sees it", fontsize=9)
    for axis, (label, values) in zip(axes[1:], panels.items(), strict=True):
        _overlay(axis, image, values)
        axis.set_title(label, fontsize=9)
        axis.set_xlabel(f"to patches {values.sum():.2f}\nmost {values.max():.3f}, even {values.mean():.3f}", fontsize=8)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    save(figure, path)


def plot_attention_heads(path: Path, title: str, image: np.ndarray, maps: np.ndarray) -> None:
    """Plots one token's maps float32[blocks, heads, h, w] over the image uint8[H, W, 3]: a row per block, a column per head."""
    blocks, heads = maps.shape[:2]
    figure = new_figure(1.15 * heads + 0.8, 1.15 * blocks + 0.7)
    axes = figure.subplots(blocks, heads, squeeze=False)
    for block in range(blocks):
        for head in range(heads):
            axis = axes[block, head]
            _overlay(axis, image, maps[block, head])
            axis.set(xticks=[], yticks=[])
            if block == 0:
                axis.set_title(f"head {head + 1}", fontsize=8)
            if head == 0:
                axis.set_ylabel(f"block {block + 1}", fontsize=8)
    figure.suptitle(drawn(title, width=max(28, 14 * heads), lines=4), fontsize=9)
    save(figure, path)


def _overlay(axis: Any, image: np.ndarray, values: np.ndarray) -> None:
    height, width = image.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    # The image is pale, so that its light and dark areas are not mistaken for the map's.
    axis.imshow(image.mean(axis=-1), cmap="gray", vmin=-300, vmax=255, extent=extent)
    share = values / max(float(values.max()), 1e-12)
    axis.imshow(values, cmap="Reds", alpha=0.15 + 0.75 * share, extent=extent, interpolation="nearest", vmin=0)
