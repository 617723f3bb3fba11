"""Where a run was computed: versions, devices, date and command."""

from __future__ import annotations

import collections
import datetime
import importlib.metadata
import os
import platform
import shlex
import sys

import jax

from deit_jax.parallel.platforms import (
    DeviceError,
    default_to_cpu,
    require_devices,
    unused_accelerator,
)
from deit_jax.version import __version__

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")


def environment() -> dict[str, str]:
    """Of this process and now, by names for people. No names of users or machines but what the command says."""
    devices = jax.devices()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    versions = {name: _version(name) for name in _PACKAGES}
    return {
        "date": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
        "command": shlex.join([os.path.basename(sys.executable), *sys.argv]),
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), {jax.process_count()} process(es)",
        "host": f"{platform.system()} {platform.machine()}, {cores} CPU cores for the main process",
        "deit_jax": __version__,
        "python": platform.python_version(),
        **{name: version for name, version in versions.items() if version},
    }


def version_page() -> str:
    """What `--version` prints: a few lines that say which software runs on which devices, to paste into an issue."""
    chosen = {
        name: os.environ[name] for name in ("JAX_PLATFORMS", "XLA_FLAGS", "LIBTPU_INIT_ARGS") if name in os.environ
    }
    lines = [
        f"deit_jax {__version__}",
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        ", ".join(f"{name} {version}" for name in _PACKAGES if (version := _version(name))),
        *(f"{name}={value}" for name, value in chosen.items()),
    ]
    default_to_cpu()
    try:
        require_devices()
    except DeviceError as error:
        return "\n".join([*lines, f"error: {error}"])
    kinds = collections.Counter(device.device_kind for device in jax.devices())
    lines.append(f"backend {jax.default_backend()}: " + ", ".join(f"{count} x {kind}" for kind, count in kinds.items()))
    if (warning := unused_accelerator()) is not None:
        lines.append(f"warning: {warning}")
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
