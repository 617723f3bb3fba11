"""Profiles a few steps of a run."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import jax
from packaging.requirements import Requirement

from deit_jax import console


class Profile:
    """Traces `steps` steps after step `start` into `folder`/plugins/profile, for TensorBoard's profiler; none if `steps` is 0.

    A context manager, which also writes the trace if the run ends earlier. Only warns where JAX's profiler would crash (see
    `profiler_fault`).
    """

    def __init__(self, folder: Path, start: int, steps: int) -> None:
        self._folder, self._first, self._last = folder, start + 1, start + steps
        self._running, self._newest = False, start

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._stop(self._newest)

    def before(self, step: int) -> None:
        """Call this before dispatching a step."""
        if step == self._first <= self._last:
            if (fault := profiler_fault()) is not None:
                console.warn(f"no profile is taken: {fault}")
                return
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, results: Any) -> None:
        """Call this with the results of the step; waits for them only after the last traced step."""
        if self._running and step == self._last:
            jax.block_until_ready(results)
            self._stop(step)
        self._newest = step

    def _stop(self, step: int) -> None:
        jax.profiler.stop_trace()
        self._running = False
        console.say(f"a profile of steps {self._first} to {step} is in {self._folder}")


def profiler_fault(loaded: Path = Path("/proc/self/maps")) -> str | None:
    """Returns why JAX's profiler would crash this process; None if no reason is known.

    With a libtpu that does not match jaxlib, starting the profiler causes a segmentation fault (libtpu 0.0.52 with jaxlib 0.10.2,
    which disagree about the size of the profiler's table). The matching version is that of jax's extra `tpu`.

    loaded: Linux's list of the files mapped by the process.
    """
    try:
        if "libtpu.so" not in loaded.read_text(encoding="utf-8", errors="replace"):
            return None
        version = importlib.metadata.version("libtpu")
        requirements = [Requirement(text) for text in importlib.metadata.requires("jax") or ()]
    except (OSError, importlib.metadata.PackageNotFoundError):
        return None
    for requirement in requirements:
        if requirement.name == "libtpu" and not requirement.specifier.contains(version, prereleases=True):
            return (
                f"this process has loaded libtpu {version}, but jax {jax.__version__} requires libtpu{requirement.specifier}: "
                f"the profiler would crash. Run pip install 'libtpu{requirement.specifier}'"
            )
    return None
