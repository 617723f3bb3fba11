"""Speed of the augmentation on the device: RandAugment compared with timm's and Pillow, and its share of a training step.

    python benchmarks/augmentation.py [--peer_python=PYTHON] [--skip_step] [--topology=v5e:2x2]

With PYTHON (an interpreter with timm and Pillow): images/s of RandAugment at 224 pixels, ours compiled by JAX on one core, and
timm's in one process on the same core, measured alternately. The ratio is the median of the ratios of the rounds, by wall-clock
time and by processor time, which is less sensitive to other load on the machine.

Unless skipped: the time of the whole recipe (Table 9) and of a DeiT-S training step with it, on this machine's CPU.

With a TPU topology (needs libtpu, but no TPU): XLA's estimated cycles per image, from the optimised program, of both layers of
RandAugment, of the rest of the recipe, and of a DeiT-S training step in bfloat16 without augmentation, with 64 images per device.
A loop counts with its expected number of iterations. XLA's model does not include kernel launches or the cost of gathers; gathers
of single pixels are counted separately, and there must be none.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
POLICY = "rand-m9-mstd0.5-inc1"
FILL = (124, 116, 104)
IMAGES = 256  # per round
BATCH_ON_TPU = 64  # per device


def crops(count: int) -> Any:
    """Random crops of two photographs at 224 pixels: uint8[count, 224, 224, 3]."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    photos = [Image.open(ROOT / f"tests/golden/crops_{name}.jpg").convert("RGB") for name in ("china", "flower")]
    result = []
    for k in range(count):
        photo = photos[k % 2]
        side = int(rng.uniform(0.4, 1) * min(photo.size))
        left, top = (int(rng.integers(size - side + 1)) for size in photo.size)
        result.append(np.asarray(photo.crop((left, top, left + side, top + side)).resize((224, 224))))
    return np.stack(result)


def measure_randaugment(peer_python: str, rounds: int) -> dict[str, Any]:
    """Measures on one core: the process is pinned to it before JAX starts its threads."""
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    from deit_jax.parallel.host_memory import keep_freed_memory

    keep_freed_memory()  # as run.py does
    import jax
    import jax.numpy as jnp
    import numpy as np

    from deit_jax.augment.mixing import fold_in_each
    from deit_jax.augment.plans import apply_operations
    from deit_jax.augment.randaugment import RandAugment

    images = crops(IMAGES)

    @jax.jit
    def augment(step, images):
        keys = fold_in_each(jax.random.fold_in(jax.random.key(0), step), jnp.arange(len(images)))
        return apply_operations(images, *RandAugment.parse(POLICY).draw(keys), FILL, "sequential")

    on_device = jnp.asarray(images)
    augment(0, on_device).block_until_ready()
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/crops.npy", images)
        command = [peer_python, str(ROOT / "benchmarks/peers/augmentation_timm.py"), f"{folder}/crops.npy", POLICY]
        peer = subprocess.Popen([*command, str(core)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        versions = json.loads(peer.stdout.readline())
        rows = []
        for number in range(rounds + 1):
            peer.stdin.write("\n")
            peer.stdin.flush()
            theirs = json.loads(peer.stdout.readline())
            clock, processor = time.perf_counter(), time.process_time()
            augment(number, on_device).block_until_ready()
            ours = [time.perf_counter() - clock, time.process_time() - processor]
            if number:  # the first is a warm-up
                rows.append((ours, theirs))
                rates = [IMAGES / seconds for seconds in (ours[0], theirs[0])]
                print(f"round {number}: {rates[0]:.0f} images/s, timm {rates[1]:.0f}", file=sys.stderr, flush=True)
        peer.stdin.close()
        peer.wait()
    ratios = {
        f"ratio_{name}": round(statistics.median(theirs[k] / ours[k] for ours, theirs in rows), 3)
        for k, name in enumerate(("clock", "processor_time"))
    }
    return (
        ratios
        | {
            "ms_per_image": round(statistics.median(ours[1] for ours, _ in rows) / IMAGES * 1e3, 4),
            "timm_ms_per_image": round(statistics.median(theirs[1] for _, theirs in rows) / IMAGES * 1e3, 4),
            "smallest_and_largest_ratio": [round(f(t[0] / o[0] for o, t in rows), 3) for f in (min, max)],
            "rounds": rounds,
        }
        | versions
    )


def step_program(batch_size: int, device: Any, augment: bool) -> tuple[Any, Any]:
    """Compiles DeiT-S (without a teacher) for one device; returns the program and its recipe."""
    from deit_jax.parallel.mesh import make_mesh
    from deit_jax.recipes.imagenet import deit
    from deit_jax.training.plan import resolve
    from deit_jax.training.program import build_augmentation, build_program

    config = deit("small")
    config.model.name = "deit_small_patch16_224"
    config.train.batch_size = batch_size
    config.augment.group_size = batch_size // 4
    config.compute_dtype = "bfloat16" if device.platform == "tpu" else "float32"
    plan = resolve(config, num_images=1_281_167, data_classes=1000)
    recipe = build_augmentation(config, plan)
    if not augment:
        off = ("flip_probability", "erase_probability", "mixup_alpha", "cutmix_alpha")
        config.augment.update({name: 0.0 for name in off} | {"rand_augment": ""})
    return build_program(config, plan, make_mesh([device])), recipe


def measure_step(rounds: int) -> dict[str, Any]:
    from deit_jax.parallel.host_memory import keep_freed_memory

    keep_freed_memory()
    import jax
    import jax.numpy as jnp

    batch = {"image": jnp.asarray(crops(16)), "label": jnp.arange(16, dtype=jnp.int32)}
    program, recipe = step_program(16, jax.devices()[0], augment=True)
    augment = jax.jit(recipe)
    state = program.init()
    times: dict[str, list[float]] = {"recipe": [], "step": []}
    for number in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(augment(jax.random.key(number), batch["image"], batch["label"]))
        middle = time.perf_counter()
        state, _ = program.train_step(state, None, batch)
        jax.block_until_ready(state)
        if number:  # the first compiles
            times["recipe"].append(middle - start)
            times["step"].append(time.perf_counter() - middle)
    ms = {f"{name}_ms_per_image": round(statistics.median(values) / 16 * 1e3, 2) for name, values in times.items()}
    share = statistics.median(r / s for r, s in zip(*times.values(), strict=True))
    return ms | {"recipe_percent_of_step": round(100 * share, 2), "rounds": rounds, "cores": os.cpu_count()}


def estimated_cycles(program: str, turns: dict[str, float]) -> float:
    """The sum of XLA's estimates over an optimised program. turns: of the loops over chunks, by scope."""
    from deit_jax.aot.schedule import parse

    runs, unknown = parse(program).runs(turns)
    assert not unknown, unknown
    return sum(run.times * (run.instruction.cycles or 0) for run in runs)


def pixel_gathers(program: str) -> int:
    """Counts gathers that fetch more slices than a device has rows."""
    found = re.findall(r" = \w+\[([\d,]*)\]\S* gather\(.*slice_sizes=\{([\d,]*)\}", program)
    sizes = [[math.prod(map(int, filter(None, text.split(",")))) for text in pair] for pair in found]
    return sum(size / slice_size > BATCH_ON_TPU for size, slice_size in sizes)


def measure_cost(topology: str) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from configs import deit
    from deit_jax.augment.chunked import apply_in_chunks
    from deit_jax.augment.pipeline import TrainAugmentation
    from deit_jax.modes.compile import expected_turns

    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    there = SingleDeviceSharding(device)

    def abstract(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=there)

    def compiled(function, *arguments):
        return jax.jit(function, out_shardings=there).lower(*arguments).compile().as_text()

    rows = BATCH_ON_TPU
    images, labels = abstract((rows, 224, 224, 3), jnp.uint8), abstract((rows,), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=there)
    drawn = abstract((rows, 2), jnp.int32), abstract((rows, 2), jnp.float32)
    recipe = TrainAugmentation.from_section(
        deit.recipe("small").augment, num_classes=1000, group_size=rows, plan="chunked"
    )
    programs = {
        "randaugment": compiled(lambda *a: apply_in_chunks(*a, FILL), images, *drawn),
        "recipe": compiled(recipe, key, images, labels),
        "rest_of_recipe": compiled(dataclasses.replace(recipe, rand_augment=""), key, images, labels),
    }
    program, _ = step_program(rows, device, augment=False)
    batch = {"image": images, "label": labels}
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    programs["step"] = program.train_step.lower(program.abstract_state, None, batch).compile().as_text()
    turns = expected_turns(recipe, rows)
    cycles = {name: estimated_cycles(text, turns) / rows for name, text in programs.items()}
    result: dict[str, Any] = {f"{name}_kilocycles_per_image": round(c / 1e3, 1) for name, c in cycles.items()}
    for name in ("randaugment", "rest_of_recipe", "recipe"):
        result[f"{name}_percent_of_step"] = round(100 * cycles[name] / cycles["step"], 2)
    return result | {
        "pixel_gathers": pixel_gathers(programs["recipe"]),
        "images_per_device": rows,
        "topology": topology,
    }


def run_part(name: str, arguments: list[str], **environment: str) -> dict[str, Any]:
    """Runs each part in its own process, because cores and platforms must be set before JAX is imported."""
    command = [sys.executable, __file__, f"--part={name}", *arguments]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {result}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer_python", help="an interpreter with timm and Pillow")
    parser.add_argument("--topology", help="e.g. v5e:2x2; needs libtpu")
    parser.add_argument("--skip_step", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--part", choices=("randaugment", "step", "cost"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.part:
        parts = {
            "randaugment": lambda: measure_randaugment(flags.peer_python, flags.rounds),
            "step": lambda: measure_step(max(3, flags.rounds // 3)),
            "cost": lambda: measure_cost(flags.topology),
        }
        print(json.dumps(parts[flags.part]()))
        return
    result: dict[str, Any] = {}
    rounds, on_cpu = f"--rounds={flags.rounds}", {"JAX_PLATFORMS": "cpu"}
    if flags.peer_python:
        result["randaugment"] = run_part("randaugment", [f"--peer_python={flags.peer_python}", rounds], **on_cpu)
    if not flags.skip_step:
        result["step"] = run_part("step", [rounds], **on_cpu)
    if flags.topology:
        ahead = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        result["tpu"] = run_part("cost", [f"--topology={flags.topology}"], **on_cpu, **ahead)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
