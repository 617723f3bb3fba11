"""Compiled programs, kept for the next run."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from deit_jax.cache_folder import has_home, is_own, why_unsafe
from deit_jax.parallel.platforms import jax_option

AUTO = "auto"
_set_here: str | None = None  # by an earlier call: of another run in this process


def keep_compiled_programs(folder: str) -> str:
    """Read and write compiled programs in `folder` ("" for nowhere), unless JAX_COMPILATION_CACHE_DIR names another.

    A folder that others can write is a way to run their programs: it is made for its owner only, and one that belongs to somebody
    else, or that its group or everybody can write, is not used. Nor is one that cannot be written; every run compiles then.

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
    # JAX would warn of every program that it cannot write.
    if wanted and not os.access(wanted, os.R_OK | os.W_OK | os.X_OK):
        wanted = None
    if wanted and (reason := why_unsafe(Path(wanted))):
        remedy = "remove it, or name another" if is_own(Path(wanted)) else "name another"
        warning = f"compiled programs are not kept: {wanted} {reason}; {remedy} in config.parallel.compilation_cache"
        wanted = None
    if wanted != before:
        jax.config.update("jax_compilation_cache_dir", wanted)
        reset_cache()  # JAX looks at the option once, when it first compiles
    _set_here = wanted
    return warning


def shares_programs(folder: str) -> bool:
    """Whether `share_compiled_programs` has an effect: several processes run, and `folder` is "auto"."""
    return folder == AUTO and jax.process_count() > 1


def share_compiled_programs(folder: str, shared: Path) -> str:
    """Keep the programs of several processes in `shared`, where `folder` is "auto"; returns a warning, or "".

    JAX writes them in the first process alone. From a folder of its own machine every other process would find none, and compile
    again at every start.

    shared: see `deit_jax.cache_folder.shared_cache_folder`.
    """
    if not shares_programs(folder):
        return ""
    warning = keep_compiled_programs(str(shared))
    if _set_here == str(shared):
        with contextlib.suppress(OSError):
            os.chmod(shared, 0o700)  # others could read one that was made for an index of the data
    return warning
