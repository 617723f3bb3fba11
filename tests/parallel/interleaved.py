"""One of several processes whose devices alternate in the mesh, as along the links of a slice; see test_host_rows.py."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from deit_jax.data.sampling import TrainOrder
from deit_jax.parallel import distributed
from deit_jax.parallel.host_rows import deal_on_devices, host_rows
from deit_jax.parallel.mesh import BATCH_AXES
from deit_jax.parallel.sharding import put_batch


def main(coordinator, processes, process):
    """Reads the labels of a batch's rows, puts them on the mesh and deals them there; raises if a row is misplaced."""
    distributed.start(coordinator, int(processes), int(process))
    devices = sorted(jax.devices(), key=lambda device: (device.id % jax.local_device_count(), device.process_index))
    assert [device.process_index for device in devices] == [0, 1, 0, 1]
    mesh = Mesh(np.array(devices).reshape(4, 1), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)
    order = TrainOrder(1000, 48, repeats=3, group_size=8, groups_per_block=3, seed=0)
    rows = host_rows(mesh, 48, order.block_size)[jax.process_index()]
    assert len(rows.stretches) == 2 and not rows.dealt
    everything = order.positions(2)
    labels = np.concatenate([everything.image_index[start:stop] for start, stop in rows.stretches]).astype(np.int32)
    batch = put_batch(mesh, {"label": labels})
    assert batch["label"].shape == (48,)
    dealt = distributed.compiled_together(jax.jit(deal_on_devices(mesh, 8, 3)))(batch)["label"]
    expected = np.zeros(48, np.int32)
    expected[everything.row] = everything.image_index
    assert len(dealt.addressable_shards) == 2
    for shard in dealt.addressable_shards:
        np.testing.assert_array_equal(shard.data, expected[shard.index])
    print("every row is where it belongs", flush=True)
