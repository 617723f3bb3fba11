"""What --mode=throughput measured, for people, with the paper's figures beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deit_jax.paper import tables
from deit_jax.reporting import console


def published_throughput(model: str, image_size: int) -> float | None:
    """Images/s that the paper printed for a model at a size in pixels (Tables 5 and 10); None where it printed none."""
    for row in tables.TABLE_5:
        if (row.model, row.image_size) == (model, image_size):
            return row.images_per_second
    sizes = {row.image_size: row.images_per_second for row in tables.TABLE_10}
    return sizes.get(image_size) if model in ("deit_base_patch16_224", "deit_base_patch16_384") else None


def show(report: Mapping[str, Any]) -> None:
    """Print a report of `deit_jax.modes.throughput`."""
    facts = {
        "devices": f"{report['devices']} x {report['device']} ({report['platform']})",
        "model": f"{report['model']}, {report['parameters']:,} parameters, {report['image_size']} px, random weights",
        "computed in": f"{report['compute_dtype']}, matrix products in JAX's {report['matmul_precision']} precision",
        "teacher": f"{report['teacher'] or 'none'} (in training)",
        "timed": f"{report['runs']} runs after warm-up",
    }
    rows = []
    for what in ("inference", "training"):
        if what not in report:
            continue
        found = report[what]
        facts[f"{what} batch"] = f"{found['batch_size']}: {found['rule']}"
        rate, mfu = found["images_per_second"], found["mfu"]
        rows.append(
            (
                what,
                str(found["batch_size"]),
                f"{rate:,.1f}",
                f"{found['images_per_second_median']:,.1f}",
                f"{rate / report['devices']:,.1f}",
                f"{found['gflops_per_image']:,.2f}",
                "unknown peak" if mfu is None else f"{100 * mfu:.1f}",
            )
        )
    console.announce("Throughput", facts)
    columns = ("", "batch", "images/s, mean", "images/s, median", "mean a device", "model GFLOPs an image", "MFU %")
    paper = None if report["overrides"] else published_throughput(report["model"], report["image_size"])
    if paper is not None:
        rows.append(("published: inference, V100", "", f"{paper:,.1f}", "", f"{paper:,.1f}", "", ""))
    console.table("Images per second", columns, rows)
    if paper is not None:
        console.say(f"published: {tables.SOURCE}, {tables.THROUGHPUT_NOTE.removeprefix('published, ')}")
    if any(report[what]["mfu"] is None for what in ("inference", "training") if what in report):
        console.say("MFU: this device's peak is not listed; set it by --config.log.peak_tflops=X")
