"""Cycles of Pallas kernels on a TPU, from the bundles that the compiler has scheduled for them.

A bundle is what a core issues in one cycle. The compiler estimates no cycles for a kernel, and nothing checks the one that its
author can attach to it. The schedule is exact except for waiting for transfers, which aot/parts.py takes into account.

The compiler writes schedules only if this is requested when it is loaded, and then those of all instructions, which takes as long
as compiling. So another process compiles each kernel by itself.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deit_jax import console
from deit_jax.aot.compiling import DoesNotFit, compile_for, stay_off_devices, topology_devices
from deit_jax.aot.schedule import KERNEL, Instruction, Module
from deit_jax.aot.topologies import Topology, find_topology

_ARGUMENTS = "LIBTPU_INIT_ARGS"  # read when the compiler is loaded
_FLAGS = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=^final_bundles$"
_FILES = "*-final_bundles.txt"
# The last bundle names its instruction.
_OF_A_KERNEL = re.compile(r"/\* exit bundle: [^*]* = custom-call\(")
_BUNDLE = re.compile(r"^\s*(?:0x[\da-f]+|\d+)\s+(?P<mark>[A-Z]{2})?\s*: (?P<depth>>*)\s*\{(?P<empty>\})?")
_EXIT = re.compile(r"scmp\.ge\.s32\.totalorder (?P<counter>%\w+), (?P<limit>\d+) /\* loop exit test")
# A loop over the grid has a turn more at each end, in which the first block is fetched and the last one written.
_GRID, _EXTRA_TURNS = "iteration index, stage", 2


def cycles_of_kernels(module: Module, topology: Topology) -> dict[str, float | None]:
    """Returns the cycles of one run of each Pallas kernel of a module that was compiled for a topology, by instruction.

    None: its schedule is not known, because it did not compile by itself or has a loop whose length is not constant.
    """
    asked = {item.name: _description(item, module) for item in module.by_name.values() if item.target == KERNEL}
    different = list(dict.fromkeys(asked.values()))
    if not different:
        return {}
    with tempfile.TemporaryDirectory(prefix="deit_jax_schedules_") as folder:
        flags = f"{os.environ.get(_ARGUMENTS, '')} {_FLAGS.format(folder)}".strip()
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        done = subprocess.run(
            [sys.executable, "-m", __name__, topology.name, folder],
            input=json.dumps(different), capture_output=True, text=True, check=False,
            env=os.environ | {_ARGUMENTS: flags, "PYTHONPATH": path},
        )  # fmt: skip
    found: list[float | None] = [None] * len(different)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        console.warn(f"the schedules of the Pallas kernels are not known ({reason})")
    else:
        found = json.loads(done.stdout.splitlines()[-1])
    return {name: found[different.index(description)] for name, description in asked.items()}


def _description(kernel: Instruction, module: Module) -> str:
    """What it takes to compile a kernel by itself, as JSON: its configuration, and the arrays that it reads and writes."""
    configuration, _ = json.JSONDecoder().raw_decode(kernel.rest.partition("backend_config=")[2])
    for described in ("debug_locations", "cost_estimate"):  # by which equal kernels differ
        configuration["custom_call_config"].pop(described, None)
    read = [array for name in kernel.operands for array in module.by_name[name].arrays]
    return json.dumps(
        {
            "config": {
                key: configuration[key]
                for key in ("custom_call_config", "scoped_memory_configs")
                if key in configuration
            },
            "read": [[array.dtype, array.dimensions] for array in read],
            "written": [[array.dtype, array.dimensions] for array in kernel.arrays],
        }
    )


def _compile_alone(description: str, topology: Topology, folder: Path) -> float | None:
    """Compiles a kernel and returns the cycles of the schedule that the compiler writes to `folder`."""
    asked = json.loads(description)
    there = jax.sharding.SingleDeviceSharding(topology_devices(topology)[0])
    written = [jax.ShapeDtypeStruct(dimensions, _dtype(dtype)) for dtype, dimensions in asked["written"]]
    read = [jax.ShapeDtypeStruct(dimensions, _dtype(dtype), sharding=there) for dtype, dimensions in asked["read"]]
    call = jax.ffi.ffi_call(
        KERNEL, written, custom_call_api_version=1, legacy_backend_config=json.dumps(asked["config"])
    )
    for file in folder.iterdir():
        file.unlink()
    try:
        compile_for(topology, jax.jit(call, out_shardings=there), *read)
    except (DoesNotFit, jax.errors.JaxRuntimeError):
        return None
    texts = [
        text for text in (file.read_text(encoding="utf-8") for file in folder.glob(_FILES)) if _OF_A_KERNEL.search(text)
    ]
    return kernel_cycles(texts[0]) if len(texts) == 1 else None


def _dtype(name: str) -> np.dtype[Any]:
    """The dtype that a module calls "pred", "bf16", "f32", "s8", "u32", ..."""
    if name == "pred":
        return np.dtype(bool)
    kind, bits = re.fullmatch(r"(bf|f|s|u)(\d+)", name).groups()  # type: ignore[union-attr]
    return np.dtype({"bf": "bfloat", "f": "float", "s": "int", "u": "uint"}[kind] + bits)


@dataclasses.dataclass
class _Loop:
    """A loop of a schedule: its own bundles, the loops in it, and its turns (None: not known)."""

    bundles: int = 0
    loops: list[_Loop] = dataclasses.field(default_factory=list)
    turns: int | None = None
    is_grid: bool = False
    steps: dict[str, int] = dataclasses.field(default_factory=dict)  # by counter

    @property
    def cycles(self) -> float:
        """nan if the turns of a loop in it are not known."""
        inside = self.bundles + sum(loop.cycles for loop in self.loops)
        return inside * (math.nan if self.turns is None else self.turns)


def kernel_cycles(text: str) -> float | None:
    """Returns the cycles of a kernel's schedule (the compiler's "final bundles" as text): each loop's bundles times its turns.

    A block that runs under a condition counts as always run. None: a loop's length is not constant.
    """
    whole = _Loop(turns=1)
    nested = [whole]
    for line in text.splitlines():
        bundle = _BUNDLE.match(line)
        if not bundle:
            continue
        depth = len(bundle["depth"])
        if bundle["empty"]:  # written without its depth
            depth = len(nested) - 1
        del nested[depth + 1 :]
        if bundle["mark"] == "LB":
            del nested[depth:]
            nested.append(_Loop())
            nested[-2].loops.append(nested[-1])
        loop = nested[-1]
        loop.bundles += 1
        loop.is_grid |= _GRID in line
        loop.steps |= {name: int(step) for name, step in re.findall(r"(%\w+) = sadd\.s32 (\d+), %\w+", line)}
        if test := _EXIT.search(line):
            turns = -(-int(test["limit"]) // loop.steps.get(test["counter"], 1))
            loop.turns = turns - _EXTRA_TURNS if loop.is_grid else turns
    cycles = whole.cycles
    return None if math.isnan(cycles) else cycles


def _main(topology_name: str, folder: str) -> None:
    """The other process: reads descriptions, as JSON, and prints the cycles of each."""
    stay_off_devices()
    topology = find_topology(topology_name)
    found = [_compile_alone(description, topology, Path(folder)) for description in json.load(sys.stdin)]
    print(json.dumps(found))


if __name__ == "__main__":
    _main(*sys.argv[1:])
