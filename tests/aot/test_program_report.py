from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deit_jax.aot.program_report import (
    Collective,
    bytes_per_device,
    collectives_of,
    memory_of,
    roofline,
    summarize_collectives,
)
from deit_jax.aot.topologies import Chip
from deit_jax.parallel.mesh import make_mesh

TPU = """
HloModule jit_train_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: f32[8,128]) -> f32[8,128] {
  %ag = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), replica_groups=[2,4]<=[8], dimensions={0}
}

%body.1 (t: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %f = f32[8,128]{1,0} fusion(%t), kind=kLoop, calls=%inner, metadata={op_name="jit(train_step)/while/body"}
}

%all-reduce-scatter.3 (q: f32[80]) -> f32[10] {
  %inside = f32[80]{0} all-reduce(%q), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

ENTRY %main (x: f32[8,128], y: f32[4]) -> f32[4] {
  %all-reduce.1 = (f32[16]{0:T(128)S(1)}, /*index=1*/bf16[6]{0:T(8,128)(2,1)}, f32[]{:T(128)}) all-reduce(%a, %b), to_apply=%add
  %w = (s32[], f32[8,128]) while(%t), condition=%cond.1, body=%body.1
  %rs = f32[10]{0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.3
  %get = f32[16]{0} get-tuple-element(%all-reduce.1), index=0
}
"""

GPU = """
ENTRY %main.9 (x: f32[8,128]) -> f32[4] {
  %ars = f32[1024]{0} all-reduce-start(%x), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %ard = f32[1024]{0} all-reduce-done(%ars)
  %ags = (f32[2,4]{1,0}, f32[16,4]{1,0}) all-gather-start(%y), replica_groups=[1,8]<=[8], dimensions={0}
  %agd = f32[16,4]{1,0} all-gather-done(%ags)
  %cps = (s8[32]{0}, s8[32]{0}, u32[], u32[]) collective-permute-start(%z), source_target_pairs={{0,1},{1,0}}
  %cpd = s8[32]{0} collective-permute-done(%cps)
}
"""


# Lines of deit_base on h100-8 with parallel.fsdp=8, of jax-cuda12-pjrt 0.10.2, shortened.
GPU_FSDP = """
ENTRY %main.9 (x: f32[8,128]) -> f32[4] {
  %ags = ((bf16[197,96]{0,1}, bf16[768,96]{0,1}), (bf16[197,768]{0,1}, /*index=1*/bf16[768,768]{0,1})) all-gather-start(%a, %b), channel_id=2, replica_groups=mesh['axis_0'=1,'axis_1'=8] {'axis_1'}, dimensions={1}, use_global_device_ids=true, metadata={op_name="x"}
  %rss = ((bf16[768,768]{0,1}, bf16[197,768]{0,1}), (bf16[768,96]{0,1}, bf16[197,96]{0,1})) reduce-scatter-start(%c, %d), channel_id=3, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}, dimensions={1}, to_apply=%add
  %rsd = (bf16[768,96]{0,1}, bf16[197,96]{0,1}) reduce-scatter-done(%rss)
  %ars = bf16[85480]{0} all-reduce-start(%e), channel_id=53, replica_groups=mesh['axis_0'=2,'axis_1'=4,'axis_2'=1] {'axis_1','axis_2'}, to_apply=%add
  %half = bf16[100]{0} all-reduce-start(%e), channel_id=54, replica_groups=mesh['axis_0'=8] {'axis_0':(1)2}, to_apply=%add
}
"""  # noqa: E501


def test_collectives_of_a_tpu_program():
    found = collectives_of(TPU, 8)
    assert found == [
        Collective("all-gather", 16 * 128 * 2, 4, in_loop=True),  # through a fusion of the loop's body
        Collective("reduce-scatter", 80 * 4 // 8, 8, in_loop=False),  # on TPU a fused all-reduce
        Collective("all-reduce", 16 * 4 + 6 * 2 + 4, 8, in_loop=False),
    ]
    assert summarize_collectives(found)["all-gather"] == {"count": 1, "bytes": 4096, "sent": 3072, "in_loops": 1}


# Lines of a small DeiT on v5e-8 with parallel.fsdp=8, of libtpu 0.0.52, shortened.
TPU_CHAIN = """
%fused_computation.1439 (param_0: bf16[192,24]) -> bf16[192,192] {
  %all-gather.127 = bf16[192,192]{1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=2, replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={1}, use_global_device_ids=true, frontend_attributes={chain_id="1"}
}

%fused_computation.9 (param_0: bf16[192,24]) -> bf16[192,192] {
  %all-gather.129 = bf16[192,192]{1,0:T(8,128)(2,1)S(1)} all-gather(%param_0), channel_id=2, replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={1}, use_global_device_ids=true, frontend_attributes={chain_id="1"}
  %all-gather.245 = bf16[192,576]{0,1:T(8,128)(2,1)} all-gather(%param_1), channel_id=3, replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={1}, use_global_device_ids=true, frontend_attributes={chain_id="2"}
}
"""  # noqa: E501


def test_overlapped_collective_counts_once():
    assert [item.bytes for item in collectives_of(TPU_CHAIN, 8)] == [192 * 192 * 2, 192 * 576 * 2]


def test_asynchronous_collectives_of_a_gpu_program_count_once():
    assert [(item.kind, item.bytes) for item in collectives_of(GPU, 8)] == [
        ("all-reduce", 4096), ("all-gather", 256), ("collective-permute", 32),
    ]  # fmt: skip


def test_groups_by_mesh_axes_and_combined_exchanges_of_a_gpu_program():
    shards = 2 * 96 * (768 + 197)
    assert collectives_of(GPU_FSDP, 8) == [
        Collective("all-gather", 8 * shards, 8, in_loop=False),
        Collective("reduce-scatter", shards, 8, in_loop=False),
        Collective("all-reduce", 2 * 85480, 4, in_loop=False),
        Collective("all-reduce", 200, 2, in_loop=False),
    ]


def test_bytes_sent_by_a_ring():
    assert Collective("all-reduce", 800, 8, False).sent == 2 * 700
    assert Collective("all-gather", 800, 8, False).sent == 700
    assert Collective("reduce-scatter", 100, 8, False).sent == 700
    assert Collective("collective-permute", 800, 8, False).sent == 800
    assert Collective("all-reduce", 800, 1, False).sent == 0


def test_bytes_per_device_follow_the_sharding():
    mesh = make_mesh(fsdp=8)
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    tree = {
        "split": jax.ShapeDtypeStruct((16, 3), jnp.float32, sharding=split),
        "whole": jax.ShapeDtypeStruct((16, 3), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec())),
        "none": None,
    }
    assert bytes_per_device(tree) == 2 * 3 * 4 + 16 * 3 * 2


def test_memory_by_kind_sums_to_the_compilers_total():
    stats = SimpleNamespace(
        argument_size_in_bytes=1000, output_size_in_bytes=700, alias_size_in_bytes=600, temp_size_in_bytes=5000,
        generated_code_size_in_bytes=40,
    )  # fmt: skip
    arrays = {"parameters": jax.ShapeDtypeStruct((100,), jnp.float32), "batch": jax.ShapeDtypeStruct((500,), jnp.uint8)}
    memory = memory_of(SimpleNamespace(memory_analysis=lambda: stats), arrays)
    assert memory.by_kind() == {
        "parameters": 400, "batch": 500, "padding": 100, "outputs": 100, "temporary": 5000, "code": 40, "total": 6140,
    }  # fmt: skip


def test_roofline():
    chip = Chip("a chip", memory=1, memory_note="", peak_flops=100.0, memory_bandwidth=10.0, link_bandwidth=1.0)
    least = roofline(chip, flops=300, bytes_accessed=40, bytes_sent=2)
    assert (least.compute, least.memory, least.links) == pytest.approx((3, 4, 2))
    assert (least.bound, least.limit, least.in_turn) == (pytest.approx(4), "memory", pytest.approx(9))
