"""--mode=compile: the trainer's own step, compiled for devices that need not be present, and its memory and cost."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.metadata
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.answers.kinds import recorded_kind
from deit_jax.aot import compiling, program_report
from deit_jax.aot.batch_search import Attempt, largest_batch, summarize_search
from deit_jax.aot.kernels import cycles_of_kernels
from deit_jax.aot.parts import StepCost, cost_of
from deit_jax.aot.printed_report import show
from deit_jax.aot.schedule import parse
from deit_jax.aot.topologies import Topology, find_topology
from deit_jax.augment.chunked import mean_turns
from deit_jax.augment.pipeline import TrainAugmentation
from deit_jax.config import ConfigError, asks_teacher, listed_names
from deit_jax.config_check import validate
from deit_jax.config_features import described_features
from deit_jax.data.registry import open_source
from deit_jax.data.sources import DataError
from deit_jax.models.flops import TrainFlops, train_flops
from deit_jax.modes.teacher import abstract_teacher
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.sharding import replicated, split_rows
from deit_jax.storage.files import as_file, write_file
from deit_jax.training.features import projection_flops
from deit_jax.training.plan import Plan, resolve, sizes_of_mixing
from deit_jax.training.program import Program, build_augmentation, build_program
from deit_jax.training.state import FeatureTrainState, count_parameters
from deit_jax.training.teacher import Teacher

IMAGENET = 1_281_167, 1000  # training images and classes, assumed if the data set is not available
Report = dict[str, Any]


def compile_step(
    config: ConfigDict,
    topology_name: str,
    *,
    output: Path | None = None,
    search_batch: bool = False,
    max_compiles: int = 5,
) -> Report:
    """Compiles the train step of `config` for a topology's devices, prints and returns the figures.

    Needs neither data nor a teacher's weights, only shapes. With `search_batch` it also searches for the largest batch that fits,
    with at most `max_compiles` compilations in all. The figures go to `output` as JSON, or else to the last printed line.

    With config.teacher.answers no answers are needed. Such a step is two programs (training/answering.py); the figures are those
    of the update, without the augmentation.

    Raises UserError, with one line, for an unknown topology, a compiler that is not installed, or a bad configuration.
    """
    compiling.stay_off_devices()
    topology = find_topology(topology_name)
    config = without_weights(config)
    validate(config)
    devices = compiling.topology_devices(topology)
    try:
        mesh = make_mesh(devices, fsdp=config.parallel.fsdp)
    except NotImplementedError as error:  # the topology's links do not allow this mesh
        raise ConfigError(
            f"config.parallel.fsdp={config.parallel.fsdp} is not a product of {topology.name}'s sides "
            f"({topology.arguments.get('topology_name')})"
        ) from error
    data = training_data(config)
    step = Step(config, topology, mesh, *data)
    console.say(f"compiling the train step for {topology.name}: minutes for a large model")
    report = step.compile(config.train.batch_size)
    show(report, topology)
    if search_batch:
        attempts = [report]
        unit = math.lcm(math.prod(sizes_of_mixing(config)), mesh.size * config.train.accumulation_steps)

        def attempt(batch_size: int) -> Attempt:
            if attempts[-1]["batch_size"] != batch_size:
                console.say(f"compiling with a batch of {batch_size}, {batch_size // mesh.size} a device")
                attempts.append(step.compile(batch_size))
            return Attempt(batch_size, attempts[-1]["fits"], attempts[-1]["memory"].get("total"))

        tried = largest_batch(
            attempt, start=config.train.batch_size, unit=unit, most=step.num_images, fixed=step.fixed_bytes(),
            capacity=topology.chip.memory, max_attempts=max_compiles,
        )  # fmt: skip
        report["search"] = summarize_search(tried, unit, mesh.size)
        console.announce("Largest batch that fits", {"found": report["search"]["text"]})
    if output is None:
        print(json.dumps(report))
    else:
        write_file(output, as_file(report), ConfigError)
        console.say(f"the figures are in {output}")
    return report


def without_weights(config: ConfigDict) -> ConfigDict:
    """Returns a copy in which a teacher without weights counts as configured; only its shape is needed."""
    config = copy.deepcopy(config)
    teacher = config.teacher
    if asks_teacher(config) and teacher.recipe is None and not teacher.weights:
        teacher.weights = ",".join("random" for _ in listed_names(teacher.name))
    return config


def training_data(config: ConfigDict) -> tuple[int, int]:
    """Returns (training images, classes): from the configuration, else from its data set if available, else ImageNet's.

    The number of images affects only the schedule's numbers, so no data set is opened for it.
    """
    images, classes = IMAGENET
    if config.num_classes is not None:
        return images, config.num_classes
    try:
        source = open_source(config.data, "train")
    except DataError as error:
        console.say(f"assuming ImageNet's {images:,} images and {classes} classes ({error})")
        return IMAGENET
    return len(source), len(source.class_names)


@dataclasses.dataclass(frozen=True)
class Step:
    """The trainer's step of a configuration, for any batch size, on a mesh of devices that need not be present."""

    config: ConfigDict
    topology: Topology
    mesh: Mesh
    num_images: int
    data_classes: int

    def build(self, batch_size: int) -> tuple[Plan, Program, Teacher | None]:
        """Returns what the trainer would build, and raises ConfigError as it would."""
        config = copy.deepcopy(self.config)
        config.train.batch_size = batch_size
        platform = self.mesh.devices.flat[0].platform
        plan = resolve(config, num_images=self.num_images, data_classes=self.data_classes, platform=platform)
        teacher = abstract_teacher(config, plan.num_classes, plan.image_size, platform)
        kind = recorded_kind(config, plan.num_classes) if config.teacher.answers else None
        return plan, build_program(config, plan, self.mesh, answers=kind, teacher=teacher), teacher

    def arguments(self, plan: Plan, program: Program, teacher: Teacher | None) -> tuple[Any, Any, Any]:
        """State, teacher and batch of the step: shapes, dtypes and shardings."""
        whole, rows = replicated(self.mesh), split_rows(self.mesh)
        frozen = None if teacher is None else teacher.for_step(self.mesh)
        frozen = jax.tree.map(lambda leaf: leaf.update(sharding=whole), frozen)
        size, pixels = plan.order.batch_size, plan.image_size
        batch = {
            "image": jax.ShapeDtypeStruct((size, pixels, pixels, 3), jnp.uint8, sharding=rows),
            "label": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=rows),
        }
        return program.abstract_state, frozen, batch

    def answered(self, program: Program, batch: Any) -> tuple[Any, Any, Any]:
        """Images, targets and answers of the update of a step from recorded answers, likewise."""
        asking, rows = program.asking, split_rows(self.mesh)
        assert asking is not None
        images, targets = jax.eval_shape(asking.augment, jax.ShapeDtypeStruct((), jnp.int32), batch)
        answers = jax.eval_shape(asking.select, jax.ShapeDtypeStruct(targets.shape, jnp.float32))
        images, targets, answers = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows), (images, targets, answers)
        )
        return images, targets, answers

    def fixed_bytes(self) -> int:
        """Bytes that a device holds at any batch size: state, teacher and gradients."""
        state, teacher, _ = self.arguments(*self.build(self.config.train.batch_size))
        return sum(program_report.bytes_per_device(tree) for tree in (state, teacher, state.trained))

    def compile(self, batch_size: int) -> Report:
        """Returns the figures of the step with a global batch of `batch_size`."""
        plan, program, teacher = self.build(batch_size)
        state, frozen, batch = self.arguments(plan, program, teacher)
        flops = train_flops(program.model, None if teacher is None else teacher.model, plan.image_size)
        flops = flops._replace(student=flops.student + projection_flops(program.features))
        report: Report = self._facts(plan, program, teacher, flops)
        function: Any = program.train_step
        arguments: tuple[Any, ...] = (state, frozen, batch)
        if program.asking is not None:  # two programs, of which the update is reported
            arguments = (state, *self.answered(program, batch))
            function = program.update_step
        try:
            compiled = compiling.compile_for(self.topology, function, *arguments)
        except compiling.DoesNotFit as error:
            capacity = error.available or self.topology.chip.memory
            return report | {
                "fits": False,
                "memory": {"total": error.needed, "capacity": capacity},
                "refusal": str(error),
            }
        kinds = {
            "parameters": state.params,
            "BatchNorm statistics": state.batch_stats,
            "optimizer": (state.opt_state, state.step),
            "EMA": state.ema,
            **({"projections": state.projections} if isinstance(state, FeatureTrainState) else {}),
            "teacher": frozen,
            "batch": batch if program.asking is None else arguments[1:],
        }
        memory = program_report.memory_of(compiled.executable, kinds)
        counted = program_report.bytes_accessed(compiled.executable)
        cost = None
        try:
            text = compiled.executable.as_text()
            assert text is not None  # the compilers for TPUs and GPUs return it
            collectives = program_report.collectives_of(text, self.mesh.size)
            cost = self.cost(text, plan)
            accessed = cost.bytes
        except jax.errors.JaxRuntimeError as error:  # libtpu wrote a format that this jaxlib cannot read
            if counted is None:
                raise
            collectives, accessed = None, counted
            report["unreadable"] = str(error).splitlines()[0]
        roof = program_report.roofline(
            self.topology.chip,
            flops=flops.total * batch_size / self.mesh.size,
            bytes_accessed=accessed,
            bytes_sent=None if collectives is None else sum(collective.sent for collective in collectives),
        )
        capacity = self.topology.chip.memory
        return report | {
            "fits": memory.total <= capacity,
            "memory": memory.by_kind() | {"capacity": capacity},
            "bytes_accessed": accessed,
            "bytes_accessed_from": "compiler" if cost is None else "text",
            "schedule": None if cost is None else cost.as_json(self.topology.chip.clock),
            "collectives": None if collectives is None else program_report.summarize_collectives(collectives),
            "roofline": dataclasses.asdict(roof) | {"bound": roof.bound, "in_turn": roof.in_turn, "limit": roof.limit},
            "images_per_second_bound": batch_size / roof.bound,
            "lower_seconds": compiled.lower_seconds,
            "compile_seconds": compiled.compile_seconds,
        }

    def cost(self, text: str, plan: Plan) -> StepCost:
        """Returns the cost by part of a compiled step, or of one of its programs, from the text of its optimized module."""
        module, chip = parse(text), self.topology.chip
        rows = plan.order.batch_size // self.mesh.size
        return cost_of(
            module,
            num_devices=self.mesh.size,
            turns=expected_turns(build_augmentation(self.config, plan), rows),
            kernels=cycles_of_kernels(module, self.topology),
            cycles_per_byte=(chip.clock or 0.0) / chip.memory_bandwidth,
        )

    def _facts(self, plan: Plan, program: Program, teacher: Teacher | None, flops: TrainFlops) -> Report:
        hosts = compiling.number_of_hosts(list(self.mesh.devices.flat))
        size = plan.order.batch_size
        return {
            "topology": self.topology.name,
            "devices": self.mesh.size,
            "hosts": hosts,
            "chip": self.topology.chip.name,
            "mesh": dict(self.mesh.shape),
            "model": self.config.model.name,
            "parameters": count_parameters(program.abstract_state.variables),
            "attention": None if program.attention is None else program.attention._asdict(),
            "teacher": None if teacher is None else self.config.teacher.name,
            **({} if program.features is None else {"features": described_features(self.config)}),
            "answers": bool(self.config.teacher.answers),  # recorded: the figures are those of the update alone
            "image_size": plan.image_size,
            "num_classes": plan.num_classes,
            "compute_dtype": plan.compute_dtype,
            "batch_size": size,
            "batch_per_device": size // self.mesh.size,
            "mixing": {"group_size": plan.order.group_size, "groups_per_block": plan.order.groups_per_block},
            "dealt_on": "hosts" if program.host_rows.dealt else "devices",
            "flops_per_image": {"student": flops.student, "teacher": flops.teacher},
            "versions": _versions(
                "jax", "jaxlib", "libtpu", "jax-cuda12-pjrt", "jax-cuda13-pjrt", "nvidia-cuda-nvcc-cu12"
            ),
        }


def expected_turns(augmentation: TrainAugmentation, rows: int) -> dict[str, float]:
    """Returns the mean number of turns of the augmentation's loops, by scope, on a device with `rows` images: over 32 batches."""
    drawn = augmentation.draw_operations(jax.random.key(0), jnp.arange(32 * rows))
    return {} if drawn is None else mean_turns(np.asarray(drawn[0]).reshape(32, rows, -1))


def _versions(*packages: str) -> dict[str, str]:
    """The versions of the installed ones among `packages`."""
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
