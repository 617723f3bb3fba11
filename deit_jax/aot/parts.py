"""Sums what a compiled step costs by part of the model and direction, and what follows each collective.

The rule: an instruction belongs to the part that its metadata names, the scopes of the traced program. A fusion belongs to its
largest matrix product or convolution, if it has one, else to its root. So a LayerNorm that is fused into a product counts as the
product.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from deit_jax.aot import schedule
from deit_jax.aot.products import flops_of
from deit_jax.aot.program_report import REDUCE_SCATTER
from deit_jax.aot.schedule import Instruction, Module
from deit_jax.parallel.scopes import Scope

COPIES, PREFETCHES, COLLECTIVES, OTHER = "layout copies", "prefetches to the chip", "collectives", "other"
CORE, NORMS, REST = "attention core", "norms", "rest of the model"
_OF_SCOPE = {
    Scope.AUGMENTATION: "augmentation",
    Scope.TEACHER: "teacher",
    Scope.OPTIMIZER: "optimizer and EMA",
    Scope.EMA: "optimizer and EMA",
    Scope.METRICS: "loss and metrics",
}
# Scopes of the student's modules and operations: the first that matches the path decides.
_OF_MODULE = (
    (re.compile(r"/(?:norm\d*|bn\d*|\w*LayerNorm\w*|\w*BatchNorm\w*)/"), NORMS),
    (re.compile(r"/attn/qkv/"), "dense layers: qkv"),
    (re.compile(r"/attn/proj/"), "dense layers: proj"),
    (re.compile(r"/attn/"), CORE),
    (re.compile(r"/mlp/"), "dense layers: MLP"),
    (re.compile(r"/(?:patch_embed|head|head_dist)/"), "patches and heads"),
    (re.compile(r"/\w*Dropout\w*/"), "dropout and stochastic depth"),
    (re.compile(r"/conv_general_dilated/"), "convolutions"),
    (re.compile(r"/dot_general/"), "dense layers: other"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Part:
    """What one part costs in one direction, in a step on one device."""

    name: str
    backward: bool
    cycles: float | None  # None: the compiler has no schedule, as for GPUs
    bytes: float  # of main memory
    flops: float | None  # of products and convolutions; None if cycles are known


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A collective in the schedule of the step."""

    kind: str
    sent: int  # bytes per device
    starts_after: float  # share of the step's cycles that come before it
    overlapped: float  # share of the step's cycles between its start and its end: 0 if the devices wait for it

    @property
    def follows(self) -> float:
        """The share of the step's cycles that come after its start: at most this much could hide it."""
        return 1 - self.starts_after


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The cost of a step on one device, by the compiler's schedule."""

    parts: list[Part]  # the most expensive first
    exchanges: list[Exchange]
    kernels: dict[str, float | None]  # cycles of the kernels by name; None: their schedule is not known
    unknown_loops: list[str]  # their bodies count once

    @property
    def cycles(self) -> float | None:
        """Cycles of a step; None for programs without a schedule, those for GPUs."""
        known = [part.cycles for part in self.parts if part.cycles is not None]
        return sum(known) if known else None

    @property
    def bytes(self) -> float:
        """Bytes of main memory that a step reads and writes."""
        return sum(part.bytes for part in self.parts)

    def as_json(self, clock: float | None) -> dict[str, Any]:
        """Returns the figures for the report."""
        cycles = self.cycles
        return {
            "cycles": cycles,
            "clock": clock,
            "seconds": None if cycles is None or clock is None else cycles / clock,
            "main_memory_bytes": self.bytes,
            "parts": [dataclasses.asdict(part) for part in self.parts],
            "exchanges": [
                {"kind": item.kind, "sent": item.sent}
                | ({} if cycles is None else {"follows": item.follows, "overlapped": item.overlapped})
                for item in self.exchanges
            ],
            "kernels": self.kernels,
            "unknown_loops": self.unknown_loops,
        }


def part_of(module: Module, instruction: Instruction) -> tuple[str, bool]:
    """Returns the part that an instruction belongs to, and whether it is of the backward pass."""
    if instruction.collective or instruction.called.get("calls", "").startswith(REDUCE_SCATTER):
        return COLLECTIVES, False
    if instruction.opcode in schedule.PREFETCHES:
        return PREFETCHES, False
    op_name = module.heaviest(instruction).op_name
    # "jit(train_step)/transpose(jvp(VisionTransformer))/blocks_0/mlp/fc1/dot_general"
    scopes = set(re.split(r"[/()]+", op_name))
    for scope, part in _OF_SCOPE.items():
        if scope in scopes:
            return part, False
    backward = "transpose(" in op_name
    if Scope.LOSS in scopes:
        return _OF_SCOPE[Scope.METRICS], backward
    if module.moves_only(instruction):
        return COPIES, backward
    if "jvp(" not in op_name:
        return OTHER, False
    path = f"/{'/'.join(re.split(r'[/()]+', op_name))}/"
    return next((part for pattern, part in _OF_MODULE if pattern.search(path)), REST), backward


def cost_of(
    module: Module,
    *,
    num_devices: int,
    turns: Mapping[str, float],
    kernels: Mapping[str, float | None],
    cycles_per_byte: float = 0.0,
) -> StepCost:
    """Returns the cost of a step by part, from its optimized module.

    turns: the mean number of turns of the loops whose length depends on the data, by scope. kernels: the cycles of the Pallas
    kernels' own schedules, by instruction. cycles_per_byte: of main memory: a kernel takes at least as long as its transfers.
    """
    runs, unknown = module.runs(turns)
    scheduled = any(run.instruction.cycles for run in runs)
    sums: dict[tuple[str, bool], list[float]] = {}
    found: dict[str, float | None] = {}
    at = 0.0
    events: list[tuple[Instruction, float]] = []
    for run in runs:
        item = run.instruction
        size = module.main_memory_bytes(item)
        cycles = float(item.cycles or 0)
        if item.target == schedule.KERNEL:
            known = kernels.get(item.name)
            found[item.name] = known
            cycles = 0.0 if known is None else max(known, size * cycles_per_byte)
        flops = 0 if scheduled else sum(flops_of(one, module.by_name) for one in (item, *module.fused(item)))
        row = sums.setdefault(part_of(module, item), [0.0, 0.0, 0.0])
        for i, amount in enumerate((cycles, size, flops)):
            row[i] += amount * run.times
        events.append((item, at))
        at += cycles * run.times
    parts = [
        Part(name, backward, cycles if scheduled else None, size, None if scheduled else flops)
        for (name, backward), (cycles, size, flops) in sorted(sums.items(), key=lambda item: item[1], reverse=True)
        if cycles or size
    ]
    return StepCost(parts, _exchanges(module, events, at, num_devices), found, unknown)


def _exchanges(
    module: Module, events: list[tuple[Instruction, float]], total: float, num_devices: int
) -> list[Exchange]:
    """events: instructions in order, and the cycles before each."""
    found: dict[str, list[Any]] = {}  # by name: the collective, the cycles before its start and before its end
    for i, (item, at) in enumerate(events):
        if begun := module.collective(item, num_devices):
            collective, name = begun
            asynchronous = item.opcode.endswith("-start") or bool(module.fused(item))
            after = events[i + 1][1] if i + 1 < len(events) else total
            row = found.setdefault(name, [collective, at, at])
            if asynchronous and not item.called.get("calls", "").startswith(REDUCE_SCATTER):
                row[2] = after  # for a chain of fusions, the last one's end
        elif item.opcode.endswith("-done") and item.operands and item.operands[0] in found:
            found[item.operands[0]][2] = at
    total = total or 1.0
    return [
        Exchange(collective.kind, collective.sent, start / total, (end - start) / total)
        for collective, start, end in found.values()
    ]
