"""A step with a live teacher, from recorded answers, and without a teacher: seconds on this CPU, and a chip's compiled figures.

    python benchmarks/recorded_teacher.py --sizes=tiny,small --batch_size=8 --rounds=5       (timed here, interleaved)
    python benchmarks/recorded_teacher.py --sizes=tiny,small --topology=v5e-8                (compiled only; needs libtpu)

The student is configs/deit.py's distilled recipe at 224 pixels, the teacher its RegNetY-160 with random weights, the answers
are drawn. "none" is the same student learning the labels with both heads. A round takes a step of each kind in turn; the table
has the median and the range. Compiled: the roofline of --mode=compile, for recorded answers of the update and the augmentation
together, which are two programs. The last line is one JSON object with the figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "configs")]
KINDS = ("live", "recorded", "none")
IMAGES, CLASSES = 1_281_167, 1000


def config_of(size: str, kind: str, teacher: str) -> Any:
    """The configuration of a student."""
    import deit  # of configs/

    config = deit.get_config(f"{size},distilled")
    config.teacher.name, config.num_classes = teacher, CLASSES
    if kind == "none":
        config.distillation.kind, config.teacher.weights = "labels", ""
    elif kind == "live":
        config.teacher.weights = "random"
    else:
        config.teacher.answers, config.teacher.weights = "ANSWERS", ""
    return config


def timed_step(config: Any, batch_size: int) -> Callable[[], None]:
    """A function that takes one step here, compiled and warm."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from deit_jax.modes.compile import Step
    from deit_jax.modes.throughput import Bench
    from deit_jax.parallel.mesh import make_mesh

    config.train.batch_size, config.augment.group_size, config.augment.groups_per_block = batch_size, 2, 4
    mesh = make_mesh()
    plan, program, teacher = Step(config, None, mesh, IMAGES, CLASSES).build(batch_size)
    bench = Bench(config, mesh, IMAGES, CLASSES)
    frozen = None if teacher is None else bench._random(teacher.for_step(mesh))
    rng = np.random.default_rng(0)
    shape = (batch_size, plan.image_size, plan.image_size, 3)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, shape, dtype=np.uint8)),
        "label": jnp.asarray(rng.integers(0, CLASSES, batch_size, dtype=np.int32)),
    }
    answers = {"decision": jnp.asarray(rng.integers(0, CLASSES, batch_size).astype(np.uint16))}
    state = program.init()

    def step() -> None:
        nonlocal state
        if program.asking is None:
            state, metrics = program.train_step(state, frozen, batch)
        else:
            images, targets = program.asking.augment(np.int32(0), batch)
            state, metrics = program.update_step(state, images, targets, answers)
        jax.block_until_ready((state, metrics))

    step()
    return step


def measure(size: str, teacher: str, batch_size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of each kind, round by round."""
    steps = {kind: timed_step(config_of(size, kind, teacher), batch_size) for kind in KINDS}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[kind].append(time.perf_counter() - start)
    return seconds


def compiled(size: str, kind: str, teacher: str, topology_name: str) -> dict[str, float]:
    """A device's compiled figures of a step: seconds at least, bytes accessed, and bytes of memory."""
    import jax
    import jax.numpy as jnp

    from deit_jax.aot import compiling
    from deit_jax.aot.topologies import find_topology
    from deit_jax.modes.compile import Step
    from deit_jax.parallel.mesh import make_mesh

    compiling.stay_off_devices()
    topology = find_topology(topology_name)
    mesh = make_mesh(compiling.topology_devices(topology))
    step = Step(config_of(size, kind, teacher), topology, mesh, IMAGES, CLASSES)
    report = step.compile(1024)
    accessed, memory = report["bytes_accessed"], report["memory"]["total"]
    if kind == "recorded":
        plan, program, _ = step.build(1024)
        _, _, batch = step.arguments(plan, program, None)
        number = jax.ShapeDtypeStruct((), jnp.int32)
        augment = compiling.compile_for(topology, program.asking.augment, number, batch).executable
        accessed += step.cost(augment.as_text(), plan).bytes
    flops = sum(report["flops_per_image"].values()) * report["batch_per_device"]
    seconds = max(flops / topology.chip.peak_flops, accessed / topology.chip.memory_bandwidth)
    return {"seconds_at_least": seconds, "flops": flops, "bytes_accessed": accessed, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="tiny,small")
    parser.add_argument("--teacher", default="regnety_160")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--topology", default="", help="compile for it instead of timing here")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for size in given.sizes.split(","):
        if given.topology:
            found[size] = {kind: compiled(size, kind, given.teacher, given.topology) for kind in KINDS}
            for kind, figures in found[size].items():
                print(f"{size:6} {kind:9} " + "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))
            continue
        seconds = measure(size, given.teacher, given.batch_size, given.rounds)
        found[size] = {
            kind: {"median": statistics.median(each), "least": min(each), "most": max(each)}
            for kind, each in seconds.items()
        }
        for kind, row in found[size].items():
            print(f"{size:6} {kind:9} {row['median']:.3f} s a step ({row['least']:.3f} to {row['most']:.3f})")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
