import jax
import numpy as np
import pytest

from deit_jax.host_teacher import HostTeacher
from deit_jax.host_teacher.source import HostSource
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.sharding import split_rows
from tests.tiny import tiny_config


@pytest.mark.parametrize("fsdp", [1, 2])
def test_rows_stay_where_they_are(modules, fsdp):
    modules(m="asked = []\ndef teach(images):\n    asked.append(len(images))\n    return images[:, 0, 0, :]")
    mesh = make_mesh(fsdp=fsdp)
    source = HostSource(HostTeacher("m:teach", tiny_config(), tuple("abc"), 4), mesh)
    images = np.random.default_rng(0).normal(size=(24, 4, 4, 3)).astype(np.float32)
    on_mesh = jax.device_put(images, split_rows(mesh))
    logits = source.logits(on_mesh)
    np.testing.assert_array_equal(logits, images[:, 0, 0])
    assert logits.sharding == split_rows(mesh) and len(logits.addressable_shards) == 8
    for shard in logits.addressable_shards:
        assert len(shard.data) == 3
    import m

    assert m.asked == [8, 4, 24]  # all rows at once
