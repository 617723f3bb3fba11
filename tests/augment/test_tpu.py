"""The recipe compiled ahead of time for a TPU, without one; needs libtpu installed."""

import math
import os
import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.long
pytest.importorskip("libtpu")

# Prints the batch dimensions of every gather's indices in the compiled program, and the collectives.
PROGRAM = r"""
import jax, jax.numpy as jnp, numpy as np, re
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tests.augment.table_9 import table_9
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
rows, all_ = (NamedSharding(mesh, PartitionSpec(*axis)) for axis in (("data",), ()))
recipe = table_9(10, group_size=8)
key = jax.eval_shape(lambda: jax.random.key(0))
batch = jax.ShapeDtypeStruct((32, 224, 224, 3), jnp.uint8), jax.ShapeDtypeStruct((32,), jnp.int32)
step = jax.jit(lambda *batch: recipe(*batch, mesh=mesh), in_shardings=(all_, rows, rows), out_shardings=rows)
text = step.lower(key, *batch).compile().as_text()
print("sizes", *re.findall(r" = \w+\[([\d,]*)\]\S* gather\(.*slice_sizes=\{([\d,]*)\}", text))
names = r"all-gather|all-reduce|all-to-all|collective-permute"
print("collectives", len(re.findall(rf"= \S+ (?:{names})(?:-start)?\(", text)))
"""


def test_tpu_program_gathers_whole_images_only_and_exchanges_nothing():
    environment = dict(os.environ, JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    environment["PYTHONPATH"] = str(pathlib.Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "collectives 0" in done.stdout
    gathers = re.findall(r"\('([\d,]*)', '([\d,]*)'\)", done.stdout)
    assert gathers  # the chunks' rows
    for shape, slices in gathers:
        size, slice_size = (math.prod(map(int, filter(None, text.split(",")))) for text in (shape, slices))
        assert size / slice_size <= 8, (shape, slices)  # one slice per row of a chunk, or per mixing group
