import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from deit_jax.config import default_config
from deit_jax.errors import UserError
from deit_jax.models import create_model
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.sharding import put_batch, replicated, state_sharding
from deit_jax.training.optimizer import make_optimizer
from deit_jax.training.state import init_state


def test_batch_is_in_order_over_the_devices():
    mesh = make_mesh()
    batch = put_batch(mesh, {"label": np.arange(16, dtype=np.int32)})
    assert mesh.shape == {"data": 8, "fsdp": 1}
    shards = sorted(batch["label"].addressable_shards, key=lambda shard: shard.index[0].start)
    np.testing.assert_array_equal(np.concatenate([shard.data for shard in shards]), np.arange(16))
    assert [shard.device for shard in shards] == list(mesh.devices.flat)


def test_indivisible_batch_raises():
    with pytest.raises(ValueError, match=r"12 rows \(label\).*8 devices"):
        put_batch(make_mesh(), {"label": np.zeros(12, np.int32)})


def test_state_is_replicated_by_default():
    mesh = make_mesh(jax.devices()[:2])
    sharding = state_sharding(mesh, {"a": {"b": np.zeros(3)}, "c": None})
    assert sharding == {"a": {"b": replicated(mesh)}, "c": None}


def test_batch_is_split_over_both_axes():
    mesh = make_mesh(fsdp=4)
    assert mesh.shape == {"data": 2, "fsdp": 4}
    batch = put_batch(mesh, {"label": np.arange(16, dtype=np.int32)})
    assert {shard.data.shape for shard in batch["label"].addressable_shards} == {(2,)}


def test_indivisible_fsdp_raises():
    with pytest.raises(UserError, match=r"config\.parallel\.fsdp=3 does not divide the 8 devices"):
        make_mesh(fsdp=3)


def test_rules_select_leaves_by_name():
    mesh = make_mesh(fsdp=8)
    state = {
        "head": {"kernel": np.zeros((16, 24)), "bias": np.zeros(24)},
        "odd": np.zeros((3, 5)),
        "step": np.zeros(()),
    }
    split = state_sharding(mesh, state)
    assert split["head"]["kernel"].spec == PartitionSpec(None, "fsdp")  # the longest divisible axis
    assert split["head"]["bias"].spec == PartitionSpec("fsdp")
    assert split["odd"] == split["step"] == replicated(mesh)
    ruled = state_sharding(mesh, state, [("bias$", "replicate"), (".*", "fsdp")])
    assert ruled["head"]["bias"] == replicated(mesh) and ruled["head"]["kernel"] == split["head"]["kernel"]
    assert state_sharding(mesh, state, min_size=25)["head"]["bias"] == replicated(mesh)
    assert state_sharding(mesh, state, [("nothing", "fsdp")])["head"]["kernel"] == replicated(mesh)


def test_fsdp_needs_an_eighth_of_the_memory_on_eight_devices():
    """Parameters, both moments and the moving average of DeiT-Ti, with the default rules."""
    mesh, defaults = make_mesh(fsdp=8), default_config().parallel
    model = create_model("deit_tiny_distilled_patch16_224")
    optimizer = make_optimizer(lambda step: 0.1, clip_norm=None, **default_config().optimizer)
    shapes = jax.eval_shape(lambda: init_state(model, optimizer, 0, 224, ema=True))
    sharding = state_sharding(mesh, shapes, defaults.sharding_rules, defaults.fsdp_min_size)
    whole = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    each = jax.tree.map(lambda leaf, where: np.prod(where.shard_shape(leaf.shape), dtype=np.int64), shapes, sharding)
    assert whole > 4 * 5.9e6
    assert sum(jax.tree.leaves(each)) < whole / 6
