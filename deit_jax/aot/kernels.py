"""Cycles of Pallas kernels on a TPU, from the bundles that the compiler has scheduled for them.

A bundle is what a core issues in one cycle. The compiler estimates no cycles for a kernel, and nothing checks the one that its
author can attach to it. The schedule is exact except for waiting for transfers, which aot/parts.py takes into account.
"""

from __future__ import annotations

import atexit
import dataclasses
import math
import os
import re
import shutil
import tempfile
from pathlib import Path

from deit_jax.aot.schedule import KERNEL, Module

_ARGUMENTS = "LIBTPU_INIT_ARGS"  # read when the compiler is loaded
_FOLDER = re.compile(r"--xla_jf_dump_to=(\S+)")
_SUFFIX = "final_bundles.txt"
_BUNDLE = re.compile(r"^\s*(?:0x[\da-f]+|\d+)\s+(?P<mark>[A-Z]{2})?\s*: (?P<depth>>*)\s*\{(?P<empty>\})?")
_EXIT = re.compile(r"scmp\.ge\.s32\.totalorder (?P<counter>%\w+), (?P<limit>\d+) /\* loop exit test")
_BODY = re.compile(r'"body":"([^"]*)"')
# A loop over the grid has a turn more at each end, in which the first block is fetched and the last one written.
_GRID, _EXTRA_TURNS = "iteration index, stage", 2

_own_folder: Path | None = None


def request_schedules() -> None:
    """Makes the compiler write the schedules of what it compiles to a temporary folder; call it before the compiler is loaded.

    Does nothing if the environment already names a folder for such files: it is used then.
    """
    given = os.environ.get(_ARGUMENTS, "")
    if _FOLDER.search(given):
        return
    global _own_folder
    _own_folder = Path(tempfile.mkdtemp(prefix="deit_jax_schedules_"))
    atexit.register(shutil.rmtree, _own_folder, ignore_errors=True)
    flags = (
        f"--xla_jf_dump_to={_own_folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=^final_bundles$"
    )
    os.environ[_ARGUMENTS] = f"{given} {flags}".strip()


def forget_schedules() -> None:
    """Deletes what the compiler has written so far, some 100 MB for a model; a folder of the user's stays."""
    for file in _own_folder.iterdir() if _own_folder else ():
        file.unlink(missing_ok=True)


def cycles_of_kernels(module: Module) -> dict[str, float | None]:
    """Returns the cycles of one run of each Pallas kernel of a module compiled in this process, by instruction.

    None: the compiler has written no schedule for it, or one with a loop whose length is not constant.
    """
    kernels = {
        item.name: (_BODY.search(item.rest) or [None, item.name])[1]
        for items in module.computations.values()
        for item in items
        if item.target == KERNEL
    }
    found = _FOLDER.search(os.environ.get(_ARGUMENTS, ""))
    folder = Path(found[1]) if found else None
    by_name: dict[str, float | None] = {}
    by_body: dict[str, float | None] = {}
    for name, body in kernels.items():
        files = sorted(folder.glob(f"*-{name}-[0-9]*-{_SUFFIX}")) if folder else []
        if files:  # the newest: names begin with a time
            by_name[name] = by_body[body] = kernel_cycles(files[-1].read_text())
    # The compiler writes one schedule for equal kernels.
    return {name: by_name[name] if name in by_name else by_body.get(body) for name, body in kernels.items()}


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
