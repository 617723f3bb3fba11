"""XLA options for the train step, by platform.

cpu, tpu   none. On CPU, fast math, wider vectors and oneDNN were tried without gain; nothing has been timed on a TPU yet.
gpu        the scheduler that overlaps exchanges between devices with arithmetic, as recommended in JAX's notes on GPU
           performance; not timed by us.

`config.parallel.xla_options` adds to them. Settings that must be made before JAX starts are elsewhere: the memory share of a GPU
(XLA_PYTHON_CLIENT_MEM_FRACTION), JAX_PLATFORMS, and the allocator on CPU (host_memory.py).
"""

from __future__ import annotations

import json

import jax
from jax.sharding import Mesh

from deit_jax.errors import UserError
from deit_jax.parallel.sharding import replicated

Options = dict[str, bool | int | float | str]

_BY_PLATFORM: dict[str, Options] = {"gpu": {"xla_gpu_enable_latency_hiding_scheduler": True}}


def xla_options(mesh: Mesh, given: str) -> Options:
    """Returns the `compiler_options` of `jax.jit`: those of the mesh's platform, overridden by "name=value,name=value".

    Values are true, false, numbers or words. Raises UserError for another form of text, or if the compiler rejects an option.
    """
    options = dict(_BY_PLATFORM.get(mesh.devices.flat[0].platform, {}))
    if not given:
        return options
    for pair in given.split(","):
        name, equals, value = pair.strip().partition("=")
        if not (name and equals and value):
            raise UserError(f"config.parallel.xla_options: {pair!r} is not name=value; separate several with commas")
        try:
            options[name] = json.loads(value.lower())
        except json.JSONDecodeError:
            options[name] = value
    try:  # compile a trivial program: better fail now than after minutes of preparation
        number = jax.ShapeDtypeStruct((), "float32", sharding=replicated(mesh))
        jax.jit(lambda x: x + 1, compiler_options=options).lower(number).compile()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"config.parallel.xla_options: XLA reports: {str(error).splitlines()[0]}") from error
    return options
