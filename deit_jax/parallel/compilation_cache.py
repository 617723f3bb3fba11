"""Compiled programs, kept for the next run."""

from __future__ import annotations

import os

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from deit_jax.cache_folder import has_home
from deit_jax.parallel.platforms import jax_option

_set_here: str | None = None  # by an earlier call: of another run in this process


def keep_compiled_programs(folder: str) -> None:
    """Read and write compiled programs in `folder` ("" for nowhere), unless JAX_COMPILATION_CACHE_DIR names another.

    A folder that others can write is a way to run their programs: it is made for its owner only. Where the folder cannot be
    written, or "~" is no folder, every run compiles.
    """
    global _set_here
    before = jax_option("jax_compilation_cache_dir")
    if before and before != _set_here:
        return
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
    if wanted != before:
        jax.config.update("jax_compilation_cache_dir", wanted)
        reset_cache()  # JAX looks at the option once, when it first compiles
    _set_here = wanted
