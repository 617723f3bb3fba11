"""Compiled programs, kept for the next run."""

from __future__ import annotations

import os

import jax

from deit_jax.cache_folder import has_home
from deit_jax.parallel.platforms import jax_option


def keep_compiled_programs(folder: str) -> None:
    """Read and write compiled programs in `folder` ("" for nowhere), unless JAX_COMPILATION_CACHE_DIR names another.

    A folder that others can write is a way to run their programs: it is made for its owner only. Where the folder cannot be
    written, or "~" is no folder, every run compiles.
    """
    if not folder or jax_option("jax_compilation_cache_dir") or (folder.startswith("~") and not has_home()):
        return
    folder = os.path.expanduser(folder)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.R_OK | os.W_OK | os.X_OK):  # JAX would warn of every program that it cannot write
        jax.config.update("jax_compilation_cache_dir", folder)
