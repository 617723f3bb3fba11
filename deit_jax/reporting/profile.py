"""A profiler's trace of a few steps of a run."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import jax
from packaging.requirements import Requirement

from deit_jax import console


class Profile:
    """Traces `steps` steps after step `start` into `folder`/plugins/profile, for TensorBoard's profiler; nothing if `steps` is 0.

    A context manager: what was traced is written, also if the run ends before. Where JAX's profiler would end the process
    (`profiler_fault`) a warning is all there is.
    """

    def __init__(self, folder: Path, start: int, steps: int) -> None:
        self._folder, self._first, self._last = folder, start + 1, start + steps
        self._running, self._newest = False, start

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:  # the run ended within the steps asked for
            self._stop(self._newest)

    def before(self, step: int) -> None:
        """To be called before a step is given to the device."""
        if step == self._first <= self._last:
            fault = profiler_fault()
            if fault is not None:
                console.warn(f"no profile is taken: {fault}")
                return
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, results: Any) -> None:
        """To be called with what the step returned; waits for it after the last traced step only."""
        if self._running and step == self._last:
            jax.block_until_ready(results)
            self._stop(step)
        self._newest = step

    def _stop(self, step: int) -> None:
        jax.profiler.stop_trace()
        self._running = False
        console.say(f"a profile of steps {self._first} to {step} is in {self._folder}")


def profiler_fault(loaded: Path = Path("/proc/self/maps")) -> str | None:
    """Why JAX's profiler must not be started in this process; None if nothing is known against it.

    A process that has loaded a libtpu that jaxlib was not built with dies of a segmentation fault when the profiler starts (seen
    with libtpu 0.0.52 and jaxlib 0.10.2: the two disagree about the size of the profiler's table). Which one belongs to it is
    what jax asks for in its extra `tpu`. loaded: Linux's list of the files that the process has mapped.
    """
    try:
        if "libtpu.so" not in loaded.read_text(encoding="utf-8", errors="replace"):
            return None
        found = importlib.metadata.version("libtpu")
        asked = [Requirement(text) for text in importlib.metadata.requires("jax") or ()]
    except (OSError, importlib.metadata.PackageNotFoundError):
        return None
    for requirement in asked:
        if requirement.name == "libtpu" and not requirement.specifier.contains(found, prereleases=True):
            return (
                f"this process has loaded libtpu {found}, and jax {jax.__version__} asks for libtpu{requirement.specifier}: its "
                f"profiler would end the process. pip install 'libtpu{requirement.specifier}'"
            )
    return None
