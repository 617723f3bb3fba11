import jax
import numpy as np
import pytest

from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.sharding import put_batch, replicated, state_sharding


def test_a_batch_lies_in_order_over_the_devices():
    mesh = make_mesh()
    batch = put_batch(mesh, {"label": np.arange(16, dtype=np.int32)})
    assert mesh.shape == {"data": 8}
    shards = sorted(batch["label"].addressable_shards, key=lambda shard: shard.index[0].start)
    np.testing.assert_array_equal(np.concatenate([shard.data for shard in shards]), np.arange(16))
    assert [shard.device for shard in shards] == list(mesh.devices.flat)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"12 rows \(label\).*8 devices"):
        put_batch(make_mesh(), {"label": np.zeros(12, np.int32)})


def test_the_state_is_whole_on_every_device():
    mesh = make_mesh(jax.devices()[:2])
    sharding = state_sharding(mesh, {"a": {"b": np.zeros(3)}, "c": None})
    assert sharding == {"a": {"b": replicated(mesh)}, "c": None}
