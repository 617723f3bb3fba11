"""The process of benchmarks/on_device.py that computes: reads a row per line and writes its measurements as lines."""

from __future__ import annotations

import functools
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs import deit, quickstart
from deit_jax.aot.program_report import memory_of
from deit_jax.aot.topologies import find_chip
from deit_jax.config_check import validate
from deit_jax.evaluation.timing import fits
from deit_jax.models import create_model, native_image_size
from deit_jax.models.attention import Attention, Fused
from deit_jax.models.flops import train_flops
from deit_jax.models.protocol import on_mesh
from deit_jax.modes.compile import IMAGENET, without_weights
from deit_jax.modes.teacher import abstract_teacher
from deit_jax.modes.train import train
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.sharding import put_batch, replicated
from deit_jax.reporting.environment import environment
from deit_jax.reporting.run_log import read_metrics
from deit_jax.reporting.speed import Speed
from deit_jax.training.plan import resolve
from deit_jax.training.program import build_program
from tests import tiny
from tests.models import timm_names

Row = dict[str, Any]
Say = Callable[..., None]  # reports measurements of the current row

BATCH, SMALLEST_BATCH = 256, 16
BLOCKS, BLOCK_SECONDS = 5, 1.0  # timed blocks of steps, and their minimum length
QUICK_START_STEPS = 300
TINY_SIZE, TINY_CLASSES = 28, 10


def first_device() -> Any:
    return jax.devices()[0]


def random_values(shapes: Any) -> Any:
    """Values for a tree of shapes, drawn by NumPy because that compiles nothing."""
    rng = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: Any) -> Any:
        if leaf.ndim < 2:  # scales and variances, or biases and means
            name = jax.tree_util.keystr(path, simple=True, separator="/").rpartition("/")[2]
            return np.full(leaf.shape, name in ("scale", "var"), leaf.dtype)
        return (0.02 * rng.standard_normal(leaf.shape, np.float32)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


# --- The machine ---------------------------------------------------------------------------------------------------------------


def machine(row: Row, say: Say) -> Row:
    """Names, versions and memory."""
    device = first_device()
    memory = (device.memory_stats() or {}).get("bytes_limit")
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        output = ""
    return {name: value for name, value in environment().items() if name != "command"} | {
        "platform": device.platform,
        "card": device.device_kind,
        "backend": " ".join(device.client.platform_version.split()),
        "jax_memory_gib": None if memory is None else memory / 2**30,  # JAX's share of the card's memory
        "nvidia_smi": output or None,
        "processor": platform.processor() or platform.machine(),
    }


# --- Logits --------------------------------------------------------------------------------------------------------------------


@functools.cache
def network(name: str, small: bool) -> tuple[Any, Any, Any, Any]:
    """Returns model, variables, images, and timm's logits for them if recorded."""
    if small:
        fields = tiny.STUDENT if name.startswith("deit") else tiny.TEACHER
        model, images = create_model(name, TINY_CLASSES, TINY_SIZE, **fields), timm_names.photographs(2, TINY_SIZE)
        return model, random_values(jax.eval_shape(model.init, jax.random.key(0), images)), images, None
    with np.load(timm_names.GOLDEN / "models.npz") as arrays:
        recorded = arrays[name]
    variables = timm_names.our_variables(timm_names.state_dict_shapes()[name])
    # For a model with the token: class head, distillation head, both.
    return (
        create_model(name),
        variables,
        timm_names.model_images(name),
        recorded[-1] if recorded.ndim == 3 else recorded,
    )


@functools.cache
def logits_of(name: str, small: bool, where: str | None, dtype: str) -> Any:
    """float32[images, classes] computed on the first device of a platform (None: the default one)."""
    model, variables, images, _ = network(name, small)
    device = jax.devices(where)[0]
    model = on_mesh(model.clone(dtype=jnp.dtype(dtype)), make_mesh([device]))
    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        output = jax.jit(model.apply)(*jax.device_put((variables, images), device))
    return np.asarray(output.logits, np.float32)


def logits(row: Row, say: Say) -> Row:
    """Differences of a network's logits, relative to the maximum of the CPU's in float32."""
    name, dtype, small = row["model"], row["dtype"], row["tiny"]
    reference, recorded = logits_of(name, small, "cpu", "float32"), network(name, small)[3]
    found = logits_of(name, small, None, dtype)

    def difference(one: Any, other: Any) -> float:
        return float(np.max(np.abs(one - other)) / np.max(np.abs(reference)))

    result: Row = {"difference": difference(found, reference)}
    if dtype != "float32":
        result["difference_of_cpu"] = difference(logits_of(name, small, "cpu", dtype), reference)
    if recorded is not None:
        result["difference_to_timm"] = difference(found, recorded)
    if not np.isfinite(found).all():
        result["error"] = "some logits are not finite"
    return result


# --- Attention -----------------------------------------------------------------------------------------------------------------


def attention(row: Row, say: Say) -> Row:
    """Errors of the fused kernel's values and gradients and of plain attention's, in bfloat16, relative to those in float32."""
    count, width, heads = (2, 64, 2) if row["tiny"] else (64, 768, 12)
    fused = first_device().platform == "gpu"
    say(kernel="cudnn" if fused else "xla")
    x, cotangent = (
        np.random.default_rng(seed).standard_normal((count, row["tokens"], width), np.float32) for seed in (0, 1)
    )

    def computed(implementation: Any, dtype: str) -> Callable[[], list[Any]]:
        """Returns a function that computes the output, and the gradients of the parameters and of x."""
        module = Attention(heads, 0.0, "float32", implementation, jnp.dtype(dtype))
        arguments = {"queries": None, "train": False, "positions": None}
        variables = random_values(jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.asarray(x), **arguments)))

        @jax.jit
        def run(variables: Any, x: Any, cotangent: Any) -> Any:
            value, pull = jax.vjp(lambda variables, x: module.apply(variables, x, **arguments), variables, x)
            return value, pull(cotangent.astype(value.dtype))

        with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
            given = jax.device_put((variables, x.astype(dtype), cotangent))
            compiled = run.lower(*given).compile()
        return lambda: [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(compiled(*given))]

    exact = computed("xla", "float32")()

    def error(found: list[Any]) -> float:
        pairs = zip(found, exact, strict=True)
        return max(float(np.linalg.norm(one - other) / np.linalg.norm(other)) for one, other in pairs)

    kernel = computed(Fused("cudnn", None) if fused else "xla", "bfloat16")
    results = [kernel() for _ in range(5)]
    repeats = all(np.array_equal(*pair) for other in results[1:] for pair in zip(results[0], other, strict=True))
    result: Row = {
        "difference": error(results[0]),
        "difference_of_plain": error(computed("xla", "bfloat16")()),
        "repeats": repeats,
    }
    if not all(np.isfinite(leaf).all() for leaf in results[0]):
        result["error"] = "some values or gradients are not finite"
    return result


# --- The train step ------------------------------------------------------------------------------------------------------------


def step_config(recipe: str, attention: str, batch_size: int, small: bool) -> Any:
    """The recipe of configs/deit.py for one device and this batch."""
    config = deit.get_config(recipe)
    config.model.attention, config.train.batch_size = attention, batch_size
    if small:
        config.num_classes, config.image_size = TINY_CLASSES, TINY_SIZE
        config.augment.rand_augment = ""  # most of the compilation
        config.teacher.name = "regnety_002"
        with config.unlocked():
            config.model.overrides, config.teacher.overrides = dict(tiny.STUDENT), dict(tiny.TEACHER)
    config = without_weights(config)
    validate(config)
    return config


@functools.cache
def frozen_teacher(small: bool) -> tuple[Any, Any]:
    """The teacher of the distilled recipes as shapes, and with random variables on the device."""
    config = step_config("small,distilled", "xla", BATCH, small)
    size = config.image_size or native_image_size(config.model.name)
    teacher = abstract_teacher(config, config.num_classes, size, jax.default_backend())
    mesh = make_mesh([first_device()])
    return teacher, jax.device_put(random_values(teacher.for_step(mesh)), replicated(mesh))


def time_step(row: Row, batch_size: int, say: Say) -> Row:
    """Compiles and times the step with one batch size."""
    config, mesh = step_config(row["recipe"], row["attention"], batch_size, row["tiny"]), make_mesh([first_device()])
    plan = resolve(config, num_images=IMAGENET[0], data_classes=config.num_classes)
    say(batch_size=batch_size, group_size=plan.order.group_size, dtype=plan.compute_dtype)
    teacher, frozen = frozen_teacher(row["tiny"]) if "distilled" in row["recipe"] else (None, None)
    program = build_program(config, plan, mesh)  # refuses an unsuitable attention
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (batch_size, plan.image_size, plan.image_size, 3), np.uint8)
    batch = put_batch(mesh, {"image": pixels, "label": rng.integers(0, plan.num_classes, batch_size, np.int32)})
    start = time.perf_counter()
    step = program.train_step.lower(program.abstract_state, frozen, batch).compile()
    memory = memory_of(step, {"state": program.abstract_state, "teacher": frozen, "batch": batch})
    say(
        compile_seconds=time.perf_counter() - start,
        memory_gib=memory.total / 2**30,
        temporary_gib=memory.temporary / 2**30,
    )

    state, metrics = program.init(random_values(program.abstract_state.variables)), {}

    def run(steps: int) -> float:
        """The seconds until the last of this many steps is complete."""
        nonlocal state, metrics
        start = time.perf_counter()
        for _ in range(steps):
            state, metrics = step(state, frozen, batch)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    run(2)
    steps = max(2, round((0.05 if row["tiny"] else BLOCK_SECONDS) / (run(2) / 2)))
    rates = [steps * batch_size / run(steps) for _ in range(BLOCKS)]
    flops = train_flops(program.model, None if teacher is None else teacher.model, plan.image_size)
    return speed_fields(flops, batch_size, rates) | {
        "timed": f"{BLOCKS} blocks of {steps} steps",
        "teacher": None if teacher is None else f"{config.teacher.name}, random weights",
        **loss_fields(float(metrics["loss"])),
    }


def speed_fields(flops: Any, batch_size: int, rates: list[float]) -> Row:
    """The speed from blocks of this many images, and the process's peak memory so far."""
    device = first_device()
    chip = find_chip(device.device_kind)
    speed = Speed(batch_size, 1, flops, None if chip is None else chip.peak_flops)
    values = speed.metrics(batch_size / statistics.median(rates))
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    result = {
        "images_per_second": statistics.median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "mfu": values.get("mfu"),
        "model_tflops_per_second": values["model_tflops_per_second"],
        "gflops_per_image": flops.total / 1e9,
        "peak_tflops": None if chip is None else chip.peak_flops / 1e12,
        "process_peak_gib": None if peak is None else peak / 2**30,  # includes earlier rows
    }
    if chip is None:
        result["no_mfu"] = f"no peak of {device.device_kind!r} in deit_jax/aot/topologies.py, so no MFU"
    return result


def loss_fields(loss: float) -> Row:
    return {"loss": loss} if np.isfinite(loss) else {"error": f"the loss is {loss}"}


def step(row: Row, say: Say) -> Row:
    """Runs `time_step` with BATCH, or half of it and so on until it fits into memory."""
    batch_size = SMALLEST_BATCH if row["tiny"] else BATCH
    while batch_size >= SMALLEST_BATCH:
        result = fits(functools.partial(time_step, row, batch_size, say))
        if result is not None:
            return result
        say(note=f"out of memory with {batch_size} images")
        gc.collect()
        batch_size //= 2
    return {"error": f"out of memory with {SMALLEST_BATCH} images"}


# --- The quick start -----------------------------------------------------------------------------------------------------------


def quick_start(row: Row, say: Say) -> Row:
    """Trains the quick start's student with the trainer."""
    config = quickstart.get_config()
    config.train.max_steps = 4 if row["tiny"] else QUICK_START_STEPS
    config.log.every_steps = 1 if row["tiny"] else 10
    config.log.report = config.log.images = config.evaluation.teacher = False
    with config.unlocked():
        if row["tiny"]:
            config.teacher.weights = "random"
            config.model.overrides, config.teacher.overrides = dict(tiny.STUDENT), dict(tiny.TEACHER)
            config.features.pairs = ("patch_1:s1",)
            config.data.max_eval_images = config.evaluation.batch_size = 96
    with tempfile.TemporaryDirectory() as folder:
        workdir, start = Path(folder) / "run", time.perf_counter()
        results = train(config, workdir)
        seconds = time.perf_counter() - start
        losses = [values["train/loss"] for values in read_metrics(workdir) if "train/loss" in values]
    return {
        "steps": results["step"],
        "batch_size": config.train.batch_size,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "images_per_second": results["images_per_second"],
        "wall_seconds": seconds,
        "top1": results["scores"]["raw"]["class"]["top1"],
        "teacher": f"{config.teacher.name} with the quick start's shape, {config.teacher.weights} weights",
    }


MEASURES = {"machine": machine, "logits": logits, "attention": attention, "step": step, "quick start": quick_start}


def main() -> None:
    """Answers every line of stdin. The last line of a row has `status`."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # other output goes to stderr

    def say(**known: Any) -> None:
        channel.write(json.dumps(known) + "\n")
        channel.flush()

    for line in sys.stdin:
        row = json.loads(line)
        try:
            result = MEASURES[row["part"]](row, say)
            say(**result, status="error" if "error" in result else "ok")
        except Exception as error:
            text = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            # After a device error nothing else should run in this process.
            say(status="error", error=text[:300], broken=isinstance(error, jax.errors.JaxRuntimeError))


if __name__ == "__main__":
    main()
