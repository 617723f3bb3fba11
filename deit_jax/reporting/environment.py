"""Versions, devices, date and command of a process."""

from __future__ import annotations

import collections
import contextlib
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
    """Describes this process, by display name. Has no user or host names except those in the command."""
    devices = jax.devices()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "date": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
        "command": shlex.join([os.path.basename(sys.executable), *sys.argv]),
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), {jax.process_count()} process(es)",
        "host": f"{platform.system()} {platform.machine()}, {cores} CPU cores for the main process",
        "deit_jax": __version__,
        "python": platform.python_version(),
        **_versions(),
    }


def version_page() -> str:
    """Returns the output of `--version`: software and devices, to paste into an issue."""
    variables = ("JAX_PLATFORMS", "XLA_FLAGS", "LIBTPU_INIT_ARGS")
    lines = [
        f"deit_jax {__version__}",
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        ", ".join(f"{name} {version}" for name, version in _versions().items()),
        *(f"{name}={os.environ[name]}" for name in variables if name in os.environ),
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


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
