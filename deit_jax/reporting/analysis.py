"""What --mode=analyze found: JSON files, tables and pictures in a folder, tables on the console."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deit_jax.paper import tables
from deit_jax.printable import printable
from deit_jax.reporting import analysis_plots, console
from deit_jax.storage.files import replace_file, write_json

TOKEN_NAMES = ("class", "distillation")


@dataclasses.dataclass(frozen=True)
class Report:
    """Writes into `folder`, which is there; `facts` (data, images, classifiers) stand in every JSON file."""

    folder: Path
    facts: Mapping[str, Any]

    def disagreement(self, names: Sequence[str], matrix: np.ndarray) -> dict[str, Any]:
        """disagreement.json, .md and .png of the shares [n, n] in 0..1; returns what the JSON file holds."""
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
        analysis_plots.disagreement(self.folder / "disagreement.png", names, matrix, title=title)
        _show_matrix(f"{title} ({self.facts['data']})", names, matrix)
        _show_matrix(f"published: {tables.SOURCE}, Table 4, ImageNet", tables.TABLE_4_NAMES, tables.TABLE_4)
        return result

    def tokens(self, curves: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """tokens.json and .png of `token_cosines` by classifier; returns what the JSON file holds."""
        source = f"{tables.SOURCE}, section 4, DeiT-B on ImageNet"
        figures = {"learned": tables.TOKEN_COSINE_INPUT, "last_layer": tables.TOKEN_COSINE_LAST}
        result = {**self.facts, "cosines": dict(curves), "published": {"source": source, **figures}}
        write_json(self.folder / "tokens.json", result)
        analysis_plots.token_curves(self.folder / "tokens.png", curves)
        rows = [
            (label, f"{c['learned']:.3f}", f"{c['with_position']:.3f}", "  ".join(f"{value:.3f}" for value in c["after_block"]),
             f"{c['after_norm']:.3f}")
            for label, c in curves.items()
        ]  # fmt: skip
        rows.append(
            (f"published ({source})", f"{figures['learned']:.2f}", "", f"last: {figures['last_layer']:.2f}", "")
        )
        columns = ("network", "as learned", "+ position", "after each block", "after the norm")
        console.table("Cosine of class and distillation token, mean over the images", columns, rows)
        return result

    def position_embedding(
        self, table: Mapping[str, Mapping[str, Any]], norms: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """position_embedding.json and .png: norms and accuracy by interpolation; returns what the JSON file holds."""
        result = {**self.facts, "versions": dict(table)}
        write_json(self.folder / "position_embedding.json", result)
        top1 = {label: row["top1"] for label, row in table.items()}
        analysis_plots.position_norms(self.folder / "position_embedding.png", norms, top1)
        rows = [
            (label, f"{row['norm_mean']:.4f}", f"{row['norm_min']:.4f} to {row['norm_max']:.4f}", f"{row['top1']:.2f}")
            for label, row in table.items()
        ]
        title = (
            "Position embedding without fine-tuning (published: bilinear lowers the norms, and with them the accuracy)"
        )
        console.table(title, ("interpolation", "mean l2 norm", "range", "top-1 %"), rows)
        return result

    def attention(self, names: Sequence[str], images: np.ndarray, maps: np.ndarray, rollout: np.ndarray) -> None:
        """attention.npz, and for each image an overview and a picture of every block and head.

        names: "0_name", numbered. images: uint8[B, H, W, 3]; maps: float32[B, L, heads, P, h, w]; rollout: float32[B, P, h, w].
        """
        np.savez_compressed(self.folder / "attention.npz", names=list(names), maps=maps, rollout=rollout)
        tokens = TOKEN_NAMES[: maps.shape[3]]
        for name, image, by_block, rolled in zip(names, images, maps, rollout, strict=True):
            title = name.partition("_")[2]  # without its number
            last = by_block[-1].mean(axis=0)
            panels = {
                f"{token} token, last block\nmean of {by_block.shape[1]} heads": last[i]
                for i, token in enumerate(tokens)
            }
            panels |= {f"{token} token, rollout\nall blocks": rolled[i] for i, token in enumerate(tokens)}
            analysis_plots.attention_overview(self.folder / f"attention_{name}.png", title, image, panels)
            for i, token in enumerate(tokens):
                path = self.folder / f"attention_{name}_{token}_heads.png"
                analysis_plots.attention_heads(
                    path, f"{title}: where the {token} token looks", image, by_block[:, :, i]
                )


def _markdown(names: Sequence[str], matrix: Any) -> str:
    names = [printable(name).replace("|", "\\|") for name in names]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for name, row in zip(names, matrix, strict=True):
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row) + " |")
    return "\n".join(lines) + "\n"


def _show_matrix(title: str, names: Sequence[str], matrix: Any) -> None:
    # Numbers above the columns: the names would not fit.
    rows = [
        (f"{i} {name}", *(f"{value:.3f}" for value in row))
        for i, (name, row) in enumerate(zip(names, matrix, strict=True), 1)
    ]
    console.table(title, ("", *map(str, range(1, len(rows) + 1))), rows)
