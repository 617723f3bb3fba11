"""--mode=throughput: images/s of a configuration's model on the local devices, in inference and in training."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.aot.topologies import peak_flops
from deit_jax.config import ConfigError, needs_teacher
from deit_jax.config_check import validate
from deit_jax.evaluation.timing import RUNS, BatchSearch, Timing, fits, search_batch, time_runs
from deit_jax.models import native_image_size
from deit_jax.models.flops import TrainFlops, forward_flops, train_flops
from deit_jax.models.protocol import classify, initial_variables, on_mesh
from deit_jax.modes.compile import training_data, without_weights
from deit_jax.modes.teacher import abstract_teacher
from deit_jax.paper import tables
from deit_jax.parallel.distributed import is_main_process
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.platforms import jax_option
from deit_jax.parallel.sharding import replicated, split_rows
from deit_jax.reporting.speed import Speed
from deit_jax.storage.files import as_file, write_file
from deit_jax.training.plan import compute_dtype, resolve, sizes_of_mixing
from deit_jax.training.program import build_model, build_program
from deit_jax.training.state import count_parameters
from deit_jax.training.teacher import Teacher

MEASURES = ("inference", "training")
_SEARCH: dict[str, Any] = {"runs": 3, "warmup": 2, "at_least": 0.5}  # timing of each batch size that the search tries


def throughput(
    config: ConfigDict,
    *,
    measures: tuple[str, ...] = MEASURES,
    batch_size: int | None = None,
    runs: int = RUNS,
    output: Path | None = None,
) -> dict[str, Any]:
    """Times the forward pass and the train step of `config`, prints and returns the figures. Weights and images are random.

    Inference is the forward pass on normalised images that are already on the device. Training is the trainer's own step:
    augmentation, teacher, both passes, optimizer and EMA. Neither includes reading and decoding images.

    Args:
      config: validated here; needs neither data nor a teacher's weights.
      measures: a subset of MEASURES.
      batch_size: over all devices; None: searched, see `search_batch`.
      runs: timed runs, after three warm-up runs.
      output: JSON file for the figures, replaced if it exists.

    Raises ConfigError with a one-line message.
    """
    config = without_weights(config)
    validate(config)
    if runs < 1 or (batch_size is not None and batch_size < 1):
        raise ConfigError(f"--runs={runs}, --batch_size={batch_size}: both must be at least 1")
    if batch_size is None and jax.process_count() > 1:  # each process would decide by its own clock and memory
        raise ConfigError("the batch size is not searched with several processes: give --batch_size")
    if config.teacher.answers:
        raise ConfigError(
            "config.teacher.answers: --mode=throughput measures a step with a live teacher or none; leave it out"
        )
    bench = Bench(config, make_mesh(fsdp=config.parallel.fsdp), *training_data(config))
    report = bench.facts() | {"runs": runs}
    for what in measures:
        unit, prepare = bench.inference() if what == "inference" else bench.training()
        report[what] = measure(bench, what, unit, prepare, batch_size=batch_size, runs=runs)
    show(report)
    if output is not None and is_main_process():
        write_file(output, as_file(report), ConfigError)
        console.say(f"the figures are in {output}")
    return report


# Takes a batch size and returns a function that runs one batch. Its arrays are freed with it.
Prepare = Callable[[int], Callable[[], Any]]


def measure(
    bench: Bench, what: str, unit: int, prepare: Prepare, *, batch_size: int | None, runs: int
) -> dict[str, Any]:
    """Returns the figures of one measurement: batch size, how it was chosen, images/s and MFU."""
    if batch_size is None:

        def attempt(size: int) -> float | None:
            console.say(f"{what}: trying a batch of {size}")
            return fits(lambda: Timing(size, time_runs(prepare(size), **_SEARCH)).median)

        search = search_batch(attempt, start=unit, until_full=bench.platform != "cpu")
    else:
        search = BatchSearch(batch_size, "as given (--batch_size)", [])
    seconds = fits(lambda: time_runs(prepare(search.batch_size), runs=runs))
    if seconds is None:
        raise ConfigError(f"a batch of {search.batch_size} images does not fit into memory: reduce --batch_size")
    timing = Timing(search.batch_size, seconds)
    peak = peak_flops(bench.device.device_kind, bench.config.log.peak_tflops)
    rates = Speed(search.batch_size, bench.mesh.size, bench.flops(what), peak).metrics(search.batch_size / timing.mean)
    return {
        "batch_size": search.batch_size,
        "rule": search.rule,
        "tried": [{"batch_size": size, "images_per_second": rate} for size, rate in search.tried],
        "seconds": timing.seconds,
        "images_per_second": timing.mean,
        "images_per_second_median": timing.median,
        "mfu": rates.get("mfu"),
        "model_tflops_per_second": rates["model_tflops_per_second"],
        "gflops_per_image": bench.flops(what).total / 1e9,
    }


@dataclasses.dataclass(frozen=True)
class Bench:
    """The programs to measure, built from a configuration on a mesh."""

    config: ConfigDict
    mesh: Mesh
    num_images: int
    data_classes: int

    @property
    def device(self) -> jax.Device:
        """The first device; all are of one kind."""
        return self.mesh.devices.flat[0]

    @property
    def platform(self) -> str:
        """The platform of the devices: cpu, gpu or tpu."""
        return self.device.platform

    @functools.cached_property
    def shape(self) -> dict[str, Any]:
        """Classes, image size and compute dtype. Raises ConfigError for an unknown model."""
        try:
            size = self.config.image_size or native_image_size(self.config.model.name)
        except ValueError as error:
            raise ConfigError(f"config.model: {error}") from error
        return {
            "num_classes": self.config.num_classes or self.data_classes,
            "image_size": size,
            "compute_dtype": compute_dtype(self.config, self.platform),
        }

    @functools.cached_property
    def model(self) -> nn.Module:
        """The configured model."""
        return build_model(self.config, **self.shape)

    @functools.cached_property
    def teacher(self) -> Teacher | None:
        """The configured teacher as shapes."""
        return abstract_teacher(self.config, self.shape["num_classes"], self.shape["image_size"], self.platform)

    def facts(self) -> dict[str, Any]:
        """What was measured, and on what."""
        image = jax.ShapeDtypeStruct((1, self.shape["image_size"], self.shape["image_size"], 3), jnp.float32)
        init = functools.partial(initial_variables, self.model)
        return {
            "model": self.config.model.name,
            "overrides": self.config.model.overrides.to_dict(),
            **self.shape,
            "parameters": count_parameters(jax.eval_shape(init, jax.random.key(0), image)),
            "teacher": self.config.teacher.name if needs_teacher(self.config) else None,
            "device": self.device.device_kind,
            "platform": self.platform,
            "devices": self.mesh.size,
            "matmul_precision": jax_option("jax_default_matmul_precision") or "default",
            "jax": jax.__version__,
            "weights": "random",
        }

    def flops(self, what: str) -> TrainFlops:
        """Model FLOPs of one image."""
        size = self.shape["image_size"]
        if what == "inference":
            return TrainFlops(forward_flops(self.model, size), 0)
        return train_flops(self.model, None if self.teacher is None else self.teacher.model, size)

    def inference(self) -> tuple[int, Prepare]:
        """Returns the smallest batch size, and the forward pass."""
        size, dtype = self.shape["image_size"], jnp.dtype(self.shape["compute_dtype"])
        model = on_mesh(self.model, self.mesh)
        init = jax.jit(functools.partial(initial_variables, model), out_shardings=replicated(self.mesh))
        variables = init(jax.random.key(self.config.seed), jnp.zeros((1, size, size, 3), jnp.float32))
        forward = jax.jit(lambda variables, images: classify(model, variables, images).logits)

        def prepare(batch_size: int) -> Callable[[], Any]:
            if batch_size % self.mesh.size:
                raise ConfigError(f"--batch_size={batch_size} does not divide among {self.mesh.size} devices")
            shape = (batch_size, size, size, 3)
            draw = jax.jit(lambda key: jax.random.normal(key, shape, dtype), out_shardings=split_rows(self.mesh))
            images = jax.block_until_ready(draw(jax.random.key(0)))
            return lambda: forward(variables, images)

        return self.mesh.size, prepare

    def training(self) -> tuple[int, Prepare]:
        """Returns the smallest batch size (whole mixing blocks on whole devices), and the train step."""
        config = self.config
        frozen = None if self.teacher is None else self._random(self.teacher.for_step(self.mesh))

        def prepare(batch_size: int) -> Callable[[], Any]:
            own = copy.deepcopy(config)
            own.train.batch_size = batch_size
            images = max(self.num_images, batch_size)  # an epoch must have a step
            plan = resolve(own, num_images=images, data_classes=self.data_classes, platform=self.platform)
            program = build_program(own, plan, self.mesh, teacher=self.teacher)
            state, batch = program.init(), self._random_batch(batch_size, plan.image_size, plan.num_classes)

            def run() -> Any:
                nonlocal state
                state, metrics = program.train_step(state, frozen, batch)
                return state, metrics

            return run

        return math.lcm(math.prod(sizes_of_mixing(config)), self.mesh.size * config.train.accumulation_steps), prepare

    def _random(self, shapes: Any) -> Any:
        """Small random values with the shapes and dtypes of a frozen teacher."""
        leaves, tree = jax.tree.flatten(shapes)

        def draw(key: jax.Array) -> Any:
            keys = jax.random.split(key, len(leaves))
            values = (0.02 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True))
            return jax.tree.unflatten(tree, [x.astype(leaf.dtype) for x, leaf in zip(values, leaves, strict=True)])

        return jax.jit(draw, out_shardings=replicated(self.mesh))(jax.random.key(1))

    def _random_batch(self, batch_size: int, image_size: int, num_classes: int) -> dict[str, jax.Array]:
        def draw(key: jax.Array) -> dict[str, jax.Array]:
            images = jax.random.bits(key, (batch_size, image_size, image_size, 3), jnp.uint8)
            return {"image": images, "label": jax.random.randint(key, (batch_size,), 0, num_classes, jnp.int32)}

        return jax.block_until_ready(jax.jit(draw, out_shardings=split_rows(self.mesh))(jax.random.key(2)))


def published_throughput(model: str, image_size: int) -> float | None:
    """Images/s of a model at an image size in pixels as published in Tables 5 and 10; None if not published."""
    for row in tables.TABLE_5:
        if (row.model, row.image_size) == (model, image_size):
            return row.images_per_second
    sizes = {row.image_size: row.images_per_second for row in tables.TABLE_10}
    return sizes.get(image_size) if model in ("deit_base_patch16_224", "deit_base_patch16_384") else None


def show(report: Mapping[str, Any]) -> None:
    """Prints the figures that `throughput` returns, next to the published ones."""
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
        figures = report[what]
        facts[f"{what} batch"] = f"{figures['batch_size']}: {figures['rule']}"
        rate, mfu = figures["images_per_second"], figures["mfu"]
        rows.append(
            (what, str(figures["batch_size"]), f"{rate:,.1f}", f"{figures['images_per_second_median']:,.1f}",
             f"{rate / report['devices']:,.1f}", f"{figures['gflops_per_image']:,.2f}",
             "unknown peak" if mfu is None else f"{100 * mfu:.1f}")
        )  # fmt: skip
    console.announce("Throughput", facts)
    columns = ("", "batch", "images/s, mean", "images/s, median", "mean per device", "model GFLOPs per image", "MFU %")
    paper = None if report["overrides"] else published_throughput(report["model"], report["image_size"])
    if paper is not None:
        rows.append(("published: inference, V100", "", f"{paper:,.1f}", "", f"{paper:,.1f}", "", ""))
    console.table("Images per second", columns, rows)
    if paper is not None:
        console.say(f"published: {tables.SOURCE}, {tables.THROUGHPUT_NOTE.removeprefix('published, ')}")
    if any(report[what]["mfu"] is None for what in ("inference", "training") if what in report):
        console.say("MFU: the peak of this device is not listed; set it with --config.log.peak_tflops=X")
