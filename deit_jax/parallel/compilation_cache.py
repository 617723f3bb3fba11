"""The cache of compiled programs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from deit_jax.cache_folder import has_home, is_own, why_unsafe
from deit_jax.parallel.platforms import jax_option

AUTO = "auto"
_configured: str | None = None  # by an earlier call, e.g. of another run in this process


def keep_compiled_programs(folder: str) -> str:
    """Caches compiled programs in `folder` ("" for nowhere), unless JAX_COMPILATION_CACHE_DIR names another.

    Anyone who can write to the folder can run programs as its user. So it is created for its owner only, and is not used if it
    belongs to another user or is writable by its group or everybody. If it is not writable, every run compiles again.

    folder: "auto" is ~/.cache/deit_jax. Returns a warning if the folder is not safe, else "".
    """
    global _configured
    before = jax_option("jax_compilation_cache_dir")
    if before and before != _configured:
        return ""
    folder, warning = "~/.cache/deit_jax" if folder == AUTO else folder, ""
    homeless = folder.startswith("~") and not has_home()
    wanted = None if homeless else os.path.expanduser(folder) or None
    try:
        if wanted:
            os.makedirs(wanted, mode=0o700, exist_ok=True)
    except OSError:
        wanted = None
    # JAX would print a warning for every program that it cannot write.
    if wanted and not os.access(wanted, os.R_OK | os.W_OK | os.X_OK):
        wanted = None
    if wanted and (reason := why_unsafe(Path(wanted))):
        remedy = "remove it, or name another" if is_own(Path(wanted)) else "name another"
        warning = f"compiled programs are not cached: {wanted} {reason}; {remedy} in config.parallel.compilation_cache"
        wanted = None
    if wanted != before:
        jax.config.update("jax_compilation_cache_dir", wanted)
        reset_cache()  # JAX reads the option only once, when it first compiles
    _configured = wanted
    return warning


def shares_programs(folder: str) -> bool:
    """Whether `share_compiled_programs` has an effect: several processes run, and `folder` is "auto"."""
    return folder == AUTO and jax.process_count() > 1


def share_compiled_programs(folder: str, shared: Path) -> str:
    """Caches the programs of several processes in `shared` if `folder` is "auto"; returns a warning, or "".

    JAX's cache is written only by process 0. In a folder local to its machine the other processes would find nothing, and compile
    again at every start. shared: see `deit_jax.cache_folder.shared_cache_folder`.
    """
    if not shares_programs(folder):
        return ""
    warning = keep_compiled_programs(str(shared))
    if _configured == str(shared):
        with contextlib.suppress(OSError):
            os.chmod(shared, 0o700)  # a folder created for an index of the data is readable by others
    return warning
