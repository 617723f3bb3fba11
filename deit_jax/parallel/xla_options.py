"""Options of XLA for the train step: the one place where they are chosen, by platform.

cpu, tpu   none. On CPU fast-math, wider vectors and oneDNN were tried and gained nothing; for TPU nothing could be timed yet.
gpu        the scheduler that hides exchanges between devices behind arithmetic, as JAX's notes on GPU performance advise; not
           timed by us.

`config.parallel.xla_options` adds to them. What has to be set before JAX starts is not here: memory of a GPU
(XLA_PYTHON_CLIENT_MEM_FRACTION), JAX_PLATFORMS. The allocator on CPU: host_memory.py.
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
    """For `jax.jit(compiler_options=...)`: those of the mesh's platform, and over them "name=value,name=value".

    Values are true, false, numbers or words. Raises UserError for a text of another form, and for a name or value that the
    platform's compiler refuses.
    """
    options = dict(_BY_PLATFORM.get(mesh.devices.flat[0].platform, {}))
    if not given:
        return options
    for pair in given.split(","):
        name, equals, value = pair.strip().partition("=")
        if not (name and equals and value):
            raise UserError(f"config.parallel.xla_options: {pair!r} is not name=value; join several by commas")
        try:
            options[name] = json.loads(value.lower())
        except json.JSONDecodeError:
            options[name] = value
    try:  # a program of nothing: better now than after minutes of preparation
        number = jax.ShapeDtypeStruct((), "float32", sharding=replicated(mesh))
        jax.jit(lambda x: x + 1, compiler_options=options).lower(number).compile()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"config.parallel.xla_options: XLA says: {str(error).splitlines()[0]}") from error
    return options
