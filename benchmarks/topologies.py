"""The largest batch per chip: DeiT-Ti, S and B, alone and with the RegNetY-160 teacher, compiled for chips that are not present.

    python benchmarks/topologies.py --rows=topologies.jsonl                      (v5e-8 and v6e-8; needs libtpu)
    python benchmarks/topologies.py --rows=topologies.jsonl --topologies=h100-8  (needs jax[cuda12])

Each cell is `run.py --mode=compile --search_batch` with the recipe of configs/deit.py, in its own process: at most three
compilations of a few minutes each. Cells in the file --rows are not compiled again: rerun the same command after an interruption.
The mixing groups have 32 rows, the increment of a chip's batch, so that no group spans two chips; a block has as many groups as
there are chips, so that the search uses the same increment. Everything else is the paper's recipe.
The last line is one JSON object with the figures: images per device by cell.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from deit_jax.aot.topologies import Topology, find_topology  # noqa: E402  (from this checkout)

# A child process: the mode with the number of compilations, for which run.py has no flag.
CHILD = """
import sys
from pathlib import Path
from deit_jax.modes.compile import compile_step
sys.path.insert(0, "configs")
import deit
config = deit.get_config(sys.argv[1])
config.train.batch_size, config.augment.group_size, config.augment.groups_per_block = map(int, sys.argv[4:])
compile_step(config, sys.argv[2], output=Path(sys.argv[3]), search_batch=True, max_compiles=3)
"""
GROUP = 32  # images per mixing group
# MiB per image, approximately, on TPU: a good start saves compilations. XLA's GPU compiler needs more.
EXPECTED_MIB = {
    "tiny": 12,
    "tiny,distilled": 16,
    "small": 26,
    "small,distilled": 34,
    "base": 48,
    "base,distilled": 56,
}
GPU_FACTOR = 2.5


def measure(topology: Topology, model: str) -> dict[str, Any]:
    """Computes one cell: the largest batch, and the memory of each attempt. The output of the attempts goes to stderr."""
    devices = topology.num_devices
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        expected = EXPECTED_MIB[model] * (1 if topology.platform == "tpu" else GPU_FACTOR)
        size = int(topology.chip.memory / (expected * 2**20)) // GROUP * GROUP * devices
        done = subprocess.run(
            [sys.executable, "-c", CHILD, model, topology.name, str(path), str(size), str(GROUP), str(devices)],
            cwd=ROOT,
            stdout=sys.stderr,
        )
        if done.returncode:
            sys.exit(f"{topology.name} {model}: the compilation failed; its message is above")
        report = json.loads(path.read_text())
    largest = report["search"]["largest"]
    return {
        "topology": topology.name,
        "model": model,
        "images_a_device": None if largest is None else largest // devices,
        "next_refused": report["search"]["smallest_refused"] and report["search"]["smallest_refused"] // devices,
        "tried": [[item["batch_size"] // devices, item["fits"], item["needed"]] for item in report["search"]["tried"]],
        "capacity": report["memory"]["capacity"],
        "versions": report["versions"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=Path, required=True, help="JSON lines file of measured cells; new ones are appended"
    )
    parser.add_argument("--topologies", default="v5e-8,v6e-8", help="names separated by commas")
    parser.add_argument("--models", default="tiny,small,base", help="sizes separated by commas")
    arguments = parser.parse_args()

    rows = [json.loads(line) for line in arguments.rows.read_text().splitlines()] if arguments.rows.exists() else []
    known = {(row["topology"], row["model"]): row for row in rows}
    found = {}
    for topology in map(find_topology, arguments.topologies.split(",")):
        for size in arguments.models.split(","):
            for model in (size, f"{size},distilled"):
                row = known.get((topology.name, model))
                if row is None:
                    row = measure(topology, model)
                    with arguments.rows.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                found[f"{topology.name} {model}"] = row["images_a_device"]
                print(
                    f"{topology.name:8} {model:16} {row['images_a_device']} images per device "
                    f"(next refused: {row['next_refused']}; {len(row['tried'])} compilations)",
                    flush=True,
                )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
