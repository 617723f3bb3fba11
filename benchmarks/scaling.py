"""Scaling of the trainer's step with devices, batch, depth, resolution and classes, compiled for devices that are not present.

    python benchmarks/scaling.py --rows=scaling.jsonl                                                     (needs libtpu)
    python benchmarks/scaling.py --rows=scaling.jsonl --base=h100-8 --topologies=h100-2,h100-4,h100-8     (needs jax[cuda12])

Uses the functions of `run.py --mode=compile`: the distilled recipe of configs/deit.py with a small student and teacher, without
RandAugment, which exchanges nothing and takes most of the compilation time, so that a point takes at most a minute on two cores.
Every sweep changes one thing relative to the base point. Points in the file --rows are not compiled again: rerun the same command
after an interruption. Nothing is run: the figures are the compiler's.

The expected properties are printed below each table, and whether they hold; if not, the exit status is 1. The last line is one
JSON object with the figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STATE = ("parameters", "BatchNorm statistics", "optimizer", "EMA")
MB, GFLOP = 1e6, 1e9
GROUP = (
    8  # images that share a mixing draw: few, so that every device has whole groups at every batch size of the sweep
)


@dataclasses.dataclass(frozen=True)
class Point:
    """The program to compile."""

    topology: str
    fsdp: bool  # shard parameters, optimizer and EMA over all devices
    batch: int  # images per device
    depth: int
    width: int
    pixels: int
    classes: int
    teacher: str


def measure(point: Point) -> dict[str, Any]:
    """The figures of a point; bytes are per device."""
    import deit  # from configs/

    from deit_jax.aot.compiling import stay_off_devices, topology_devices
    from deit_jax.aot.topologies import find_topology
    from deit_jax.modes.compile import IMAGENET, Step, without_weights
    from deit_jax.parallel.mesh import make_mesh

    stay_off_devices()
    topology = find_topology(point.topology)
    config = without_weights(deit.get_config("tiny,distilled"))
    config.image_size, config.num_classes = point.pixels, point.classes
    config.teacher.name = point.teacher
    config.augment.group_size, config.augment.rand_augment = GROUP, ""
    config.parallel.fsdp = topology.num_devices if point.fsdp else 1
    with config.unlocked():
        config.model.overrides = {"depth": point.depth, "embed_dim": point.width, "num_heads": point.width // 64}
    mesh = make_mesh(topology_devices(topology), fsdp=config.parallel.fsdp)
    images, _ = IMAGENET
    report = Step(config, topology, mesh, images, point.classes).compile(point.batch * mesh.size)
    if not report["fits"]:
        sys.exit(f"{point} does not fit: choose a smaller one")
    if report["collectives"] is None:
        sys.exit(f"{point}: its collectives cannot be read ({report['unreadable']})")
    memory = report["memory"]
    return {
        "devices": mesh.size,
        "temporary": memory["temporary"],
        "state": sum(memory[kind] for kind in STATE),
        "accessed_per_image": report["bytes_accessed"] / point.batch,
        "flops_per_image": sum(report["flops_per_image"].values()),
        "collectives": report["collectives"],
        "exchanged": sum(row["bytes"] for row in report["collectives"].values()),
        "bound": report["roofline"]["bound"],
        "limit": report["roofline"]["limit"],
        "compile_seconds": report["compile_seconds"],
        "versions": report["versions"],
    }


def table(name: str, values: Sequence[Any], rows: Sequence[dict[str, Any]]) -> None:
    """One sweep as a Markdown table."""
    columns = "temporary, MB | state, MB | MB accessed per image | model GFLOP per image | collectives (results, MB) | roofline"
    print(f"\n| {name} | {columns} |")
    print("|---|---|---|---|---|---|---|")
    for value, row in zip(values, rows, strict=True):
        kinds = ", ".join(
            f"{item['count']} {kind} {item['bytes'] / MB:.2f}" for kind, item in sorted(row["collectives"].items())
        )
        print(
            f"| {value} | {row['temporary'] / MB:,.0f} | {row['state'] / MB:.2f} | {row['accessed_per_image'] / MB:,.0f} | "
            f"{row['flops_per_image'] / GFLOP:.2f} | {kinds or 'none'} | {row['bound'] * 1e3:.2f} ms, {row['limit']} |"
        )


def spread(numbers: Sequence[float]) -> float:
    """The ratio of the largest to the smallest."""
    return max(numbers) / min(numbers) if min(numbers) else float("inf") if max(numbers) else 1.0


def claims(name: str, values: Sequence[Any], rows: Sequence[dict[str, Any]]) -> list[tuple[str, bool]]:
    """The expected properties of a sweep, with the measured figure and whether they hold."""

    def column(key: str) -> list[float]:
        return [row[key] for row in rows]

    found = []
    if name in ("devices", "images a device"):
        ratio = spread(column("exchanged"))
        found.append(
            (f"communication per device does not grow: within a factor of {ratio:.3f} (1.02 allowed)", ratio <= 1.02)
        )
    if name in ("devices", "devices, fsdp"):
        ratio = max(column("temporary")) / rows[0]["temporary"]
        limit = 1.05 if name == "devices" else 1.25
        found.append(
            (f"temporary memory does not grow: at most {ratio:.3f} of the first's ({limit} allowed)", ratio <= limit)
        )
        gathers = sum(row["collectives"].get("all-gather", {"count": 0})["count"] for row in rows)
        if name == "devices":
            found.append((f"no all-gathers: {gathers}", gathers == 0))
    if name == "devices, fsdp" and len(rows) > 1:
        # split / devices + whole, fitted to the first and the last; `whole`: arrays too small to shard.
        first, last = rows[0], rows[-1]
        split = (first["state"] - last["state"]) / (1 / first["devices"] - 1 / last["devices"])
        whole = first["state"] - split / first["devices"]
        off = max(abs(row["state"] / (split / row["devices"] + whole) - 1) for row in rows)
        text = f"state falls as 1 / devices: {split / MB:.2f} MB / devices + {whole / MB:.2f} MB, to {off:.4f} of it"
        found.append((f"{text} (0.01 allowed, and 2 % not split)", off <= 0.01 and whole <= 0.02 * split))
    if name in ("images a device", "depth"):
        ratio = max(
            row["temporary"] / rows[0]["temporary"] / (value / values[0])
            for row, value in zip(rows, values, strict=True)
        )
        text = f"temporary memory grows at most proportionally: at most {ratio:.2f} of that"
        found.append((f"{text} (1.05 allowed)", ratio <= 1.05))
    return found


def sweeps(base: Point, arguments: argparse.Namespace) -> dict[str, tuple[list[Any], list[Point]]]:
    """By name: the values, and the base point with each of them."""

    def vary(field: str, values: list[Any], **also: Any) -> tuple[list[Any], list[Point]]:
        return values, [dataclasses.replace(base, **{field: value}, **also) for value in values]

    from deit_jax.aot.topologies import find_topology

    names = arguments.topologies.split(",")
    counts = [find_topology(name).num_devices for name in names]
    return {
        "devices": (counts, vary("topology", names)[1]),
        "devices, fsdp": (counts, vary("topology", names, fsdp=True)[1]),
        "images a device": vary("batch", [base.batch, 2 * base.batch, 4 * base.batch]),
        "depth": vary("depth", [base.depth, 2 * base.depth, 3 * base.depth]),
        "pixels": vary("pixels", [base.pixels // 2, base.pixels, 2 * base.pixels]),
        "classes": vary("classes", [base.classes // 10, base.classes, 10 * base.classes]),
    }


def measured(path: Path) -> Callable[[Point], dict[str, Any]]:
    """Like `measure`, but reads points from the file and appends new ones to it."""
    lines = path.read_text().splitlines() if path.exists() else []
    known = {Point(**row.pop("point")): row for row in map(json.loads, lines)}

    def get(point: Point) -> dict[str, Any]:
        if point not in known:
            print(f"compiling {point}", file=sys.stderr, flush=True)
            known[point] = measure(point)
            with path.open("a") as file:
                file.write(json.dumps({"point": dataclasses.asdict(point)} | known[point]) + "\n")
        return known[point]

    return get


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=Path, required=True, help="JSON lines file of measured points; new ones are appended"
    )
    parser.add_argument("--base", default="v5e-8", help="topology of the sweeps other than over devices")
    parser.add_argument("--topologies", default="v5e-4,v5e-8,v5e-16,v5e-32", help="names separated by commas, growing")
    parser.add_argument("--sweeps", default="", help="names of the sweeps separated by semicolons; default: all")
    parser.add_argument("--batch", type=int, default=32, help="images per device, a multiple of 32")
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--width", type=int, default=192, help="a multiple of 64")
    parser.add_argument("--pixels", type=int, default=64, help="a multiple of 32")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--teacher", default="regnety_002")
    arguments = parser.parse_args()

    sys.path[:0] = [str(ROOT), str(ROOT / "configs")]
    fields = {name: getattr(arguments, name) for name in ("batch", "depth", "width", "pixels", "classes", "teacher")}
    base = Point(topology=arguments.base, fsdp=False, **fields)
    get = measured(arguments.rows)
    chosen = sweeps(base, arguments)
    if arguments.sweeps:
        chosen = {name: chosen[name] for name in arguments.sweeps.split(";")}
    result: dict[str, Any] = {"base": dataclasses.asdict(base), "sweeps": {}}
    failed = False
    for name, (values, points) in chosen.items():
        rows = [get(point) for point in points]
        table(name, values, rows)
        held = claims(name, values, rows)
        for text, holds in held:
            print(f"{'holds' if holds else 'DOES NOT HOLD'}: {text}", flush=True)
        failed |= not all(holds for _, holds in held)
        result["sweeps"][name] = {"values": values, "rows": rows, "claims": dict(held)}
    print(json.dumps(result))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
