"""Training and inference steps on CPU compared with timm's models in PyTorch, measured alternately.

    python benchmarks/vs_torch.py --peer_python=PYTHON_WITH_TORCH_AND_TIMM                 (the default cases)
    python benchmarks/vs_torch.py --peer_python=PYTHON --models small base --batch 16      (others)

Compared in float32 on the same cores, one side at a time:

* train: the step compiled by `build_program` with donated state, without augmentation, stochastic depth or EMA: normalise,
  forward, half the cross-entropy with the labels (smoothing 0.1) and half that of the distillation head with given logits (hard
  distillation without the teacher's forward pass), backward, AdamW. Ours takes uint8 images and also reports the gradient norm,
  as in training; the peer gets normalised floats and reports nothing, which slightly favours it.
* matrix_product: the first of DeiT-Ti's MLP for the batch, [B * 198, 192] by [192, 768]. Such products are most of the arithmetic
  of a step, and which side is faster depends on the processor: read the other ratios together with this one.
* infer: normalised images to logits; ours with `jax.jit(model.apply)`, the peer's in eval and inference mode. Convnets: ours as a
  frozen teacher (`freeze`: BatchNorm folded), the peer's in channels_last.

The peer is measured with its default allocator and with freed memory kept (benchmarks/peers/vs_torch_timm.py); ours is compared
with the faster one, by its median. Each side is a process that lives through all rounds of a case, keeps its program compiled and
sleeps while the other works. A round measures each side once, for at least --seconds after an untimed step, in alternating order.
Ratio: our images/s divided by the peer's in the same round; median (minimum to maximum). Also by processor time (all threads).
Neither is reliable on a busy machine: if the cores have other work, PyTorch's OpenMP threads spin while waiting for each other at
every small operation, which favours ours both ways.

Processor, versions and load of the machine are printed first. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

PEER = ROOT / "benchmarks" / "peers" / "vs_torch_timm.py"
MODELS = ("matrix_product", "tiny", "small", "base", "quickstart", "regnety_160", "regnety_002")
MEASURES = ("seconds", "processor_seconds", "faults")  # per step


def case_of(model: str, part: str, batch: int | None) -> dict[str, Any]:
    """The model that both sides build; `fields` has the same names in timm's models and ours."""
    case = {"part": part, "model": model, "fields": {}, "batch": batch or 32, "image_size": 224, "classes": 1000}
    if model == "quickstart":
        from configs.quickstart import STUDENT, get_config

        config = get_config()
        sizes = {"image_size": config.image_size, "batch": batch or config.train.batch_size, "classes": 10}
        case |= {"model": config.model.name, "fields": STUDENT} | sizes
    elif model == "regnety_160":
        case["batch"] = batch or 8  # a step with 32 takes too long
    elif model in ("tiny", "small", "base"):
        case["model"] = f"deit_{model}_distilled_patch16_224"
    return case


# --- Our side, in its own process ----------------------------------------------------------------------------------------------


def make_train_step(case: dict[str, Any]) -> tuple[Callable[[], Any], int]:
    """Returns the project's compiled step on one batch, and the number of parameters."""
    import flax.linen as nn
    import jax.numpy as jnp
    import numpy as np

    from deit_jax.parallel.mesh import make_mesh
    from deit_jax.parallel.sharding import put_batch
    from deit_jax.recipes.imagenet import deit
    from deit_jax.training.plan import resolve
    from deit_jax.training.program import build_program
    from deit_jax.training.state import count_parameters
    from deit_jax.training.teacher import Teacher

    class GivenLogits(nn.Module):
        """A substitute for a teacher's model."""

        @nn.compact
        def __call__(self, images):
            return self.param("logits", nn.initializers.zeros, (case["batch"], case["classes"]))

    config = deit("small")
    config.model.name, config.model.drop_path_rate = case["model"], 0.0
    with config.unlocked():
        config.model.overrides = case["fields"]
    off = ("flip_probability", "erase_probability", "mixup_alpha", "cutmix_alpha")
    config.augment.update({name: 0.0 for name in off} | {"rand_augment": "", "group_size": 2, "groups_per_block": 1})
    config.num_classes = case["classes"]
    config.data.repeats = 1
    config.ema.decay = 0.0
    config.image_size, config.train.batch_size = case["image_size"], case["batch"]
    teacher = None
    if "distilled" in case["model"]:
        config.distillation.kind = "hard"
        logits = np.random.RandomState(0).normal(size=(case["batch"], case["classes"])).astype(np.float32)
        teacher = Teacher(GivenLogits(), {"params": {"logits": jnp.asarray(logits)}}, "given logits")
    mesh = make_mesh()
    plan = resolve(config, num_images=1_281_167, data_classes=case["classes"])
    program = build_program(config, plan, mesh)
    side = case["image_size"]
    batch = put_batch(
        mesh,
        {
            "image": np.random.RandomState(1).randint(0, 256, (case["batch"], side, side, 3)).astype(np.uint8),
            "label": np.arange(case["batch"], dtype=np.int32) % case["classes"],
        },
    )
    state, frozen = program.init(), None if teacher is None else teacher.for_step(mesh)

    def step() -> Any:
        nonlocal state
        state, metrics = program.train_step(state, frozen, batch)
        return metrics

    return step, count_parameters(state.variables)


def make_infer_step(case: dict[str, Any]) -> tuple[Callable[[], Any], int]:
    """Returns the compiled network on one batch, and the number of parameters before folding."""
    import jax
    import jax.numpy as jnp

    from deit_jax.models import create_model
    from deit_jax.training.teacher import freeze

    model = create_model(case["model"], case["classes"], case["image_size"], **case["fields"])
    images = jax.random.normal(jax.random.key(1), (case["batch"], case["image_size"], case["image_size"], 3))
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    frozen = freeze(model, variables, "random", compute_dtype="float32")
    apply = jax.jit(lambda variables, images: frozen.model.apply(variables, images).logits)
    variables = jax.tree.map(jnp.asarray, frozen.variables)
    return lambda: apply(variables, images), frozen.num_parameters


def make_product(case: dict[str, Any]) -> tuple[Callable[[], Any], int]:
    """Returns a matrix product as in the models, and the size of its second factor."""
    import jax
    import jax.numpy as jnp

    product = jax.jit(jnp.matmul)
    left, right = jnp.ones((case["batch"] * 198, 192)), jnp.ones((192, 768))
    return lambda: product(left, right), right.size


def serve(case: dict[str, Any]) -> None:
    """Answers requests as the peer does."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case["threads"]])
    from deit_jax.parallel.host_memory import keep_freed_memory

    keep_freed_memory()  # as run.py does, before anything large is allocated
    import flax
    import jax

    make = make_train_step if case["part"] == "train" else make_infer_step
    step, parameters = make_product(case) if case["model"] == "matrix_product" else make(case)
    jax.block_until_ready(step())
    versions = {"jax": jax.__version__, "flax": flax.__version__}
    print(json.dumps({"versions": versions, "parameters": parameters}), flush=True)
    for line in sys.stdin:
        steps = int(line)
        jax.block_until_ready(step())  # restores memory that the system took from a sleeping process, untimed
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        clock, processor = time.perf_counter(), time.process_time()
        for _ in range(steps):
            result = step()
        jax.block_until_ready(result)
        spent = {"seconds": time.perf_counter() - clock, "processor_seconds": time.process_time() - processor}
        spent["faults"] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        print(json.dumps({name: value / steps for name, value in spent.items()}), flush=True)


# --- Both sides ----------------------------------------------------------------------------------------------------------------


class Side:
    """A process that runs one side's program on request."""

    def __init__(self, command: list[str], threads: int) -> None:
        limits = {"OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | limits
        )
        ready = self._answer()
        self.versions, self.parameters = ready["versions"], ready["parameters"]
        self._steps = 1

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            sys.exit("a side's process has ended; its message is above")
        return json.loads(line)

    def run(self, seconds: float) -> dict[str, float]:
        """MEASURES per step, over as many steps as take at least this long according to the last measurement."""
        self._process.stdin.write(f"{self._steps}\n")
        self._process.stdin.flush()
        spent = self._answer()
        self._steps = max(1, math.ceil(seconds / spent["seconds"]))
        return spent

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def compare(case: dict[str, Any], peer_python: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Runs all rounds of a case. Figures are images/s and faults per step; ratios as described in the module's docstring."""
    commands = {"ours": [sys.executable, str(Path(__file__).resolve()), f"--serve={json.dumps(case)}"]}
    for name, keep in (("torch", False), ("torch, memory kept", True)):
        commands[name] = [peer_python, str(PEER), json.dumps(case | {"keep_memory": keep})]
    sides = {name: Side(command, case["threads"]) for name, command in commands.items()}
    if len({side.parameters for side in sides.values()}) != 1:
        sys.exit(f"different networks: { ({name: side.parameters for name, side in sides.items()}) } parameters")
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(-1, rounds):  # the first is a warm-up that determines the number of steps
        for name in sorted(sides, reverse=number % 2 == 1):
            measured = sides[name].run(seconds)
            if number >= 0:
                spent[name].append(measured)
    for side in sides.values():
        side.close()

    middle = {
        name: {measure: statistics.median(row[measure] for row in rows) for measure in MEASURES}
        for name, rows in spent.items()
    }
    best = min(("torch", "torch, memory kept"), key=lambda name: middle[name]["seconds"])

    def ratios(measure: str) -> list[float]:
        values = [b[measure] / a[measure] for a, b in zip(spent["ours"], spent[best], strict=True)]
        return [round(f(values), 3) for f in (statistics.median, min, max)]

    return {
        "batch": case["batch"],
        "images_per_second": {name: round(case["batch"] / row["seconds"], 2) for name, row in middle.items()},
        "faults_per_step": {name: round(row["faults"], 1) for name, row in middle.items()},
        "most_faults_per_step": {name: round(max(row["faults"] for row in rows), 1) for name, rows in spent.items()},
        "ratio_median_min_max": ratios("seconds"),
        "processor_time_ratio_median_min_max": ratios("processor_seconds"),
        "compared_with": best,
        "versions": {key: value for side in sides.values() for key, value in side.versions.items()},
    }


def processor_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    found = {key.strip(): value.strip() for key, value in fields.items()}
    if "model name" not in found:
        return platform.processor() or platform.machine()
    return f"{found['model name']} (family {found.get('cpu family', '?')}, model {found.get('model', '?')})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer_python", help="an interpreter with torch and timm")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        default=["matrix_product", "tiny", "quickstart", "regnety_160", "regnety_002"],
    )
    parser.add_argument("--parts", nargs="+", choices=("train", "infer"), default=["train", "infer"])
    parser.add_argument("--batch", type=int, help="images per step; default 32, RegNetY-160 8, the quick start its own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="minimum length of a measurement")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(json.loads(arguments.serve))
        return
    if not arguments.peer_python:
        parser.error("--peer_python is needed: an interpreter with torch and timm")

    began, load = time.perf_counter(), os.getloadavg()[0]
    print(
        f"{processor_name()}; {arguments.threads} of {os.cpu_count()} cores; load {load:.1f} at the start", flush=True
    )
    results: dict[str, Any] = {}
    for model in arguments.models:
        for part in arguments.parts:
            if part == "train" and model.startswith(("regnety", "matrix")):
                continue  # frozen teachers have no training step
            case = case_of(model, part, arguments.batch) | {"threads": arguments.threads}
            row = results[f"{model} {part}"] = compare(case, arguments.peer_python, arguments.rounds, arguments.seconds)
            versions = row.pop("versions")
            if len(results) == 1:
                print("  ".join(f"{name} {version}" for name, version in versions.items()))
                names = " | ".join(f"{name}, img/s" for name in row["images_per_second"])
                print(f"| case | batch | {names} | faults a step, ours / torch | ratio (range) | by processor time |")
            speeds = " | ".join(f"{value:.1f}" for value in row["images_per_second"].values())
            faults = f"{row['faults_per_step']['ours']:.0f} / {row['faults_per_step'][row['compared_with']]:.0f}"
            by_clock, by_processor = (
                "{} ({} to {})".format(*row[f"{kind}_median_min_max"]) for kind in ("ratio", "processor_time_ratio")
            )
            print(
                f"| {model} {part} | {row['batch']} | {speeds} | {faults} | {by_clock} | {by_processor} |", flush=True
            )
    summary = {"processor": processor_name(), "threads": arguments.threads, "versions": versions}
    summary |= {"load_at_start": round(load, 1), "load_at_end": round(os.getloadavg()[0], 1)}
    summary |= {"rounds": arguments.rounds, "minutes": round((time.perf_counter() - began) / 60, 1)}
    print(
        json.dumps(
            {name: row["ratio_median_min_max"][0] for name, row in results.items()} | summary | {"cases": results}
        )
    )


if __name__ == "__main__":
    main()
