"""Compiled programs, kept for the next run."""

from __future__ import annotations

import os

import jax

from deit_jax.parallel.platforms import jax_option


def keep_compiled_programs(folder: str) -> None:
    """Read and write compiled programs in `folder` ("" for nowhere), unless JAX_COMPILATION_CACHE_DIR names another.

    A folder that others can write is a way to run their programs: it is made for its owner only.
    """
    if not folder or jax_option("jax_compilation_cache_dir"):
        return
    folder = os.path.expanduser(folder)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError:
        return  # a home that cannot be written: compile anew
    jax.config.update("jax_compilation_cache_dir", folder)
