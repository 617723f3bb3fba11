"""--mode=throughput: images/s of a configuration's model on the devices here, in inference and in training."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
from deit_jax.storage.files import disk_faults, write_json
from deit_jax.training.plan import compute_dtype, resolve, sizes_of_mixing
from deit_jax.training.program import build_model, build_program
from deit_jax.training.state import count_parameters

MEASURES = ("inference", "training")
_SEARCH_RUNS, _SEARCH_SECONDS = 3, 0.5  # at least, of each batch size that is only tried


def throughput(
    config: ConfigDict,
    *,
    measures: tuple[str, ...] = MEASURES,
    batch_size: int | None = None,
    runs: int = RUNS,
    output: Path | None = None,
) -> dict[str, Any]:
    """Time the forward pass and the train step of `config` with random weights on random images, print and return the figures.

    Inference is the forward pass alone, of normalised images that lie on the device. Training is the trainer's own step:
    augmentation, teacher (random weights too), both passes, optimizer and EMA; reading and decoding images are in neither.

    Args:
      config: validated here. Neither data nor a teacher's weights are needed.
      measures: of MEASURES.
      batch_size: over all devices; None: searched, see `search_batch`.
      runs: timed runs; three more come before them.
      output: a JSON file for the figures, replaced if it is there; None: none.

    Raises ConfigError, with one clear line.
    """
    config = without_weights(config)
    validate(config)
    if runs < 1 or (batch_size is not None and batch_size < 1):
        raise ConfigError(f"--runs={runs}, --batch_size={batch_size}: neither may be below 1")
    if batch_size is None and jax.process_count() > 1:  # each would go by its own clock and memory
        raise ConfigError("several processes do not search for a batch: give --batch_size")
    bench = Bench(config, make_mesh(fsdp=config.parallel.fsdp), *training_data(config))
    report = bench.facts() | {"runs": runs}
    for what in measures:
        unit, prepare = bench.inference() if what == "inference" else bench.training()
        report[what] = measure(bench, what, unit, prepare, batch_size=batch_size, runs=runs)
    show(report)
    if output is not None and is_main_process():
        with disk_faults(lambda reason: ConfigError(f"--output={output} cannot be written ({reason})")):
            output.parent.mkdir(parents=True, exist_ok=True)
            write_json(output, report)
        console.say(f"the figures are in {output}")
    return report


# Of a batch size: what runs one batch. All that it allocates goes when it goes.
Prepare = Callable[[int], Callable[[], Any]]


def measure(
    bench: Bench, what: str, unit: int, prepare: Prepare, *, batch_size: int | None, runs: int
) -> dict[str, Any]:
    """The figures of one measurement: batch size, how it was chosen, images/s and MFU."""
    if batch_size is None:

        def attempt(size: int) -> float | None:
            console.say(f"{what}: trying a batch of {size}")

            def median() -> float:
                seconds = time_runs(prepare(size), runs=_SEARCH_RUNS, warmup=2, at_least=_SEARCH_SECONDS)
                return Timing(size, seconds).median

            return fits(median)

        until_full = bench.platform != "cpu"
        search = search_batch(attempt, start=unit, until_full=until_full)
    else:
        search = BatchSearch(batch_size, "as asked for (--batch_size)", [])
    seconds = fits(lambda: time_runs(prepare(search.batch_size), runs=runs))
    if seconds is None:
        raise ConfigError(
            f"a batch of {search.batch_size} images does not fit into memory: give a smaller --batch_size"
        )
    timing = Timing(search.batch_size, seconds)
    peak = peak_flops(bench.device.device_kind, bench.config.log.peak_tflops)
    rates = Speed(search.batch_size, bench.mesh.size, bench.flops(what), peak)
    return {
        "batch_size": search.batch_size,
        "rule": search.rule,
        "tried": [{"batch_size": size, "images_per_second": rate} for size, rate in search.tried],
        "seconds": timing.seconds,
        "images_per_second": timing.mean,
        "images_per_second_median": timing.median,
        "mfu": rates.metrics(search.batch_size / timing.mean).get("mfu"),
        "model_tflops_per_second": rates.metrics(search.batch_size / timing.mean)["model_tflops_per_second"],
        "gflops_per_image": bench.flops(what).total / 1e9,
    }


@dataclasses.dataclass(frozen=True)
class Bench:
    """The programs that are measured, made from a configuration on a mesh."""

    config: ConfigDict
    mesh: Mesh
    num_images: int
    data_classes: int

    @property
    def device(self) -> jax.Device:
        """The first of the devices, which are all alike."""
        return self.mesh.devices.flat[0]

    @property
    def platform(self) -> str:
        """What the devices are: cpu, gpu or tpu."""
        return self.device.platform

    def _shape(self) -> dict[str, Any]:
        try:
            size = self.config.image_size or native_image_size(self.config.model.name)
        except ValueError as error:
            raise ConfigError(f"config.model: {error}") from error
        return {
            "num_classes": self.config.num_classes or self.data_classes,
            "image_size": size,
            "compute_dtype": compute_dtype(self.config, self.platform),
        }

    def facts(self) -> dict[str, Any]:
        """What the figures belong to."""
        shape = self._shape()
        model = build_model(self.config, **shape)
        image = jax.ShapeDtypeStruct((1, shape["image_size"], shape["image_size"], 3), jnp.float32)
        return {
            "model": self.config.model.name,
            "overrides": self.config.model.overrides.to_dict(),
            **shape,
            "parameters": count_parameters(
                jax.eval_shape(functools.partial(initial_variables, model), jax.random.key(0), image)
            ),
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
        shape = self._shape()
        model = build_model(self.config, **shape)
        if what == "inference":
            return TrainFlops(forward_flops(model, shape["image_size"]), 0)
        teacher = abstract_teacher(self.config, shape["num_classes"], shape["image_size"], self.platform)
        return train_flops(model, None if teacher is None else teacher.model, shape["image_size"])

    def inference(self) -> tuple[int, Prepare]:
        """The smallest batch, and the forward pass."""
        shape = self._shape()
        size, dtype = shape["image_size"], jnp.dtype(shape["compute_dtype"])
        model = on_mesh(build_model(self.config, **shape), self.mesh)
        init = jax.jit(functools.partial(initial_variables, model), out_shardings=replicated(self.mesh))
        variables = init(jax.random.key(self.config.seed), jnp.zeros((1, size, size, 3), jnp.float32))
        forward = jax.jit(lambda variables, images: classify(model, variables, images).logits)

        def prepare(batch_size: int) -> Callable[[], Any]:
            if batch_size % self.mesh.size:
                raise ConfigError(f"--batch_size={batch_size} does not divide among {self.mesh.size} devices")
            draw = jax.jit(
                lambda key: jax.random.normal(key, (batch_size, size, size, 3), dtype),
                out_shardings=split_rows(self.mesh),
            )
            images = jax.block_until_ready(draw(jax.random.key(0)))
            return lambda: forward(variables, images)

        return self.mesh.size, prepare

    def training(self) -> tuple[int, Prepare]:
        """The smallest batch (whole mixing blocks on whole devices), and the train step."""
        config, shape = self.config, self._shape()
        teacher = abstract_teacher(config, shape["num_classes"], shape["image_size"], self.platform)
        frozen = None if teacher is None else self._random(teacher.for_step(self.mesh))

        def prepare(batch_size: int) -> Callable[[], Any]:
            own = copy.deepcopy(config)
            own.train.batch_size = batch_size
            images = max(self.num_images, batch_size)  # an epoch has at least a step
            plan = resolve(own, num_images=images, data_classes=self.data_classes, platform=self.platform)
            program = build_program(own, plan, self.mesh)
            state, batch = program.init(), self._random_batch(batch_size, plan.image_size, plan.num_classes)

            def run() -> Any:
                nonlocal state
                state, metrics = program.train_step(state, frozen, batch)
                return state, metrics

            return run

        return math.lcm(math.prod(sizes_of_mixing(config)), self.mesh.size * config.train.accumulation_steps), prepare

    def _random(self, shapes: Any) -> Any:
        """Small random values in the shapes of a frozen teacher."""
        leaves, tree = jax.tree.flatten(shapes)

        def draw(key: jax.Array) -> Any:
            keys = jax.random.split(key, len(leaves))
            values = [
                (0.02 * jax.random.normal(k, leaf.shape)).astype(leaf.dtype)
                for k, leaf in zip(keys, leaves, strict=True)
            ]
            return jax.tree.unflatten(tree, values)

        return jax.jit(draw, out_shardings=replicated(self.mesh))(jax.random.key(1))

    def _random_batch(self, batch_size: int, image_size: int, num_classes: int) -> dict[str, jax.Array]:
        def draw(key: jax.Array) -> dict[str, jax.Array]:
            images = jax.random.bits(key, (batch_size, image_size, image_size, 3), jnp.uint8)
            return {"image": images, "label": jax.random.randint(key, (batch_size,), 0, num_classes, jnp.int32)}

        return jax.block_until_ready(jax.jit(draw, out_shardings=split_rows(self.mesh))(jax.random.key(2)))


def published_throughput(model: str, image_size: int) -> float | None:
    """Images/s that the paper printed for a model at a size in pixels (Tables 5 and 10); None where it printed none."""
    for row in tables.TABLE_5:
        if (row.model, row.image_size) == (model, image_size):
            return row.images_per_second
    sizes = {row.image_size: row.images_per_second for row in tables.TABLE_10}
    return sizes.get(image_size) if model in ("deit_base_patch16_224", "deit_base_patch16_384") else None


def show(report: Mapping[str, Any]) -> None:
    """Print the figures that `throughput` returns, with the paper's beside them."""
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
