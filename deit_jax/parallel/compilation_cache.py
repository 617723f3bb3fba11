"""Compiled programs, kept for the next run."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from deit_jax.cache_folder import has_home, shared_cache_folder
from deit_jax.parallel.platforms import jax_option

AUTO = "auto"
_set_here: str | None = None  # by an earlier call: of another run in this process


def keep_compiled_programs(folder: str) -> str:
    """Read and write compiled programs in `folder` ("" for nowhere), unless JAX_COMPILATION_CACHE_DIR names another.

    A folder that others can write is a way to run their programs: it is made for its owner only, and one that belongs to somebody
    else or that everybody can write is not used. Nor is one that cannot be written; every run compiles then.

    folder: "auto" is ~/.cache/deit_jax.

    Returns a warning that the folder is not safe, or "".
    """
    global _set_here
    before = jax_option("jax_compilation_cache_dir")
    if before and before != _set_here:
        return ""
    folder, warning = "~/.cache/deit_jax" if folder == AUTO else folder, ""
    homeless = folder.startswith("~") and not has_home()
    wanted = None if homeless else os.path.expanduser(folder) or None
    try:
        if wanted:
            os.makedirs(wanted, mode=0o700, exist_ok=True)
    except OSError:
        wanted = None
    if wanted and not os.access(
        wanted, os.R_OK | os.W_OK | os.X_OK
    ):  # JAX would warn of every program that it cannot write
        wanted = None
    if wanted and (reason := _not_safe(wanted)):
        warning = (
            f"compiled programs are not kept: {wanted} {reason}; remove it, or name another folder in "
            "config.parallel.compilation_cache"
        )
        wanted = None
    if wanted != before:
        jax.config.update("jax_compilation_cache_dir", wanted)
        reset_cache()  # JAX looks at the option once, when it first compiles
    _set_here = wanted
    return warning


def share_compiled_programs(folder: str, workdir: Path) -> str:
    """Keep the programs of several processes beside the workdir, where `folder` is "auto"; returns a warning, or "".

    JAX writes them in the first process alone. From a folder of its own machine every other process would find none, and compile
    again at every start.
    """
    if folder != AUTO or jax.process_count() == 1:
        return ""
    return keep_compiled_programs(str(shared_cache_folder(workdir)))


def _not_safe(folder: str) -> str:
    """Why other users could have this one run their programs from a folder; "" if they could not."""
    status = os.stat(folder)
    if status.st_uid != os.getuid():
        return "belongs to another user"
    return "can be written by everybody" if status.st_mode & stat.S_IWOTH else ""
