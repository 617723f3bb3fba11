import pytest

from deit_jax.aot.parts import cost_of, part_of
from deit_jax.aot.schedule import parse

# Lines of a small DeiT on v5e-4 of libtpu 0.0.50, shortened; cycles and shapes are made up.
TPU = """HloModule jit_train_step, is_scheduled=true

%fused_computation.1 (p.0: bf16[8,128], p.1: bf16[128,128]) -> f32[128] {
  %p.0 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[128,128]{1,0:T(8,128)(2,1)} parameter(1)
  %convolution.1 = f32[8,128]{1,0:T(8,128)} convolution(%p.0, %p.1), dim_labels=bf_io->bf, metadata={op_name="jit(train_step)/transpose(jvp(VisionTransformer))/VisionTransformer._blocks/blocks_0/mlp/fc1/dot_general"}
  ROOT %reduce.1 = f32[128]{0:T(128)} reduce(%convolution.1, %p.0), dimensions={0}, to_apply=%add, metadata={op_name="jit(train_step)/transpose(jvp(VisionTransformer))/VisionTransformer._blocks/blocks_0/norm2/reduce_sum"}
}

%fused_computation.2 (p.2: bf16[8,128]) -> bf16[128,8] {
  %p.2 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %transpose.1 = bf16[128,8]{0,1:T(8,128)(2,1)} transpose(%p.2), dimensions={1,0}
}

%all-reduce-scatter.1 (p.3: f32[16]) -> f32[4] {
  %all-reduce.9 = f32[16]{0} all-reduce(%p.3), replica_groups=[1,4]<=[4], to_apply=%add
}

ENTRY %main_spmd (image: bf16[8,128]) -> f32[] {
  %image = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %augment = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%image), kind=kLoop, calls=%f, metadata={op_name="jit(train_step)/augmentation/shard_map/vmap(jit(_where))/select_n"}, backend_config={"estimated_cycles":"10"}
  %teacher = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%augment), kind=kLoop, calls=%f, metadata={op_name="jit(train_step)/teacher/RegNet/stem/conv/conv_general_dilated"}, backend_config={"estimated_cycles":"20"}
  %norm = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%augment), kind=kLoop, calls=%f, metadata={op_name="jit(train_step)/jvp(VisionTransformer)/VisionTransformer._blocks/blocks_0/norm1/reduce_sum"}, backend_config={"estimated_cycles":"30"}
  %qkv = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%norm), kind=kOutput, calls=%f, metadata={op_name="jit(train_step)/jvp(VisionTransformer)/VisionTransformer._blocks/blocks_0/attn/qkv/dot_general"}, backend_config={"estimated_cycles":"40"}
  %turned = bf16[8,128]{0,1:T(8,128)(2,1)} copy(%qkv), metadata={op_name="jit(train_step)/jvp(VisionTransformer)/VisionTransformer._blocks/blocks_0/attn/reshape"}, backend_config={"estimated_cycles":"50"}
  %turned_too = bf16[128,8]{0,1:T(8,128)(2,1)} fusion(%qkv), kind=kLoop, calls=%fused_computation.2, metadata={op_name="jit(train_step)/transpose(jvp(VisionTransformer))/VisionTransformer._blocks/blocks_0/attn/transpose"}, backend_config={"estimated_cycles":"60"}
  %attend.1 = bf16[8,128]{1,0:T(8,128)(2,1)} custom-call(%turned), custom_call_target="tpu_custom_call", metadata={op_name="jit(train_step)/jvp(VisionTransformer)/VisionTransformer._blocks/blocks_0/attn/shard_map/attend/pallas_call"}, backend_config={"custom_call_config":{"body":"A=="}}
  %scores = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%turned), kind=kOutput, calls=%f, metadata={op_name="jit(train_step)/transpose(jvp(VisionTransformer))/VisionTransformer._blocks/blocks_0/attn/bhqd,bhkd->bhqk/dot_general"}, backend_config={"estimated_cycles":"70"}
  %loss = f32[]{:T(128)} fusion(%scores), kind=kLoop, calls=%f, metadata={op_name="jit(train_step)/jvp(loss)/reduce_sum"}, backend_config={"estimated_cycles":"5"}
  %mlp = f32[128]{0:T(128)} fusion(%scores, %scores), kind=kOutput, calls=%fused_computation.1, metadata={op_name="jit(train_step)/transpose(jvp(VisionTransformer))/VisionTransformer._blocks/blocks_0/norm2/reduce_sum"}, backend_config={"estimated_cycles":"80"}
  %start = f32[16]{0} all-reduce-start(%mlp), replica_groups=[1,4]<=[4], to_apply=%add
  %proj = f32[128]{0:T(128)} fusion(%scores), kind=kOutput, calls=%f, metadata={op_name="jit(train_step)/transpose(jvp(VisionTransformer))/VisionTransformer._blocks/blocks_0/attn/proj/dot_general"}, backend_config={"estimated_cycles":"90"}
  %done = f32[16]{0} all-reduce-done(%start)
  %all-reduce.2 = f32[16]{0} all-reduce(%proj), replica_groups=[1,4]<=[4], to_apply=%add, metadata={op_name="jit(train_step)/transpose(jvp(VisionTransformer))/VisionTransformer._blocks/blocks_0/attn/proj/dot_general"}
  %scattered = f32[4]{0} fusion(%proj), kind=kCustom, calls=%all-reduce-scatter.1, metadata={op_name="jit(train_step)/transpose(jvp(VisionTransformer))/head/dot_general"}, backend_config={"estimated_cycles":"7"}
  %adam = f32[16]{0} fusion(%done), kind=kLoop, calls=%f, metadata={op_name="jit(train_step)/optimizer/mul"}, backend_config={"estimated_cycles":"100"}
  %ema = f32[16]{0} fusion(%adam), kind=kLoop, calls=%f, metadata={op_name="jit(train_step)/ema/add"}, backend_config={"estimated_cycles":"38"}
  %fetch = (f32[16]{0:S(1)}, f32[16]{0}, u32[]{:S(2)}) copy-start(%ema)
  %fetched = f32[16]{0:S(1)} copy-done(%fetch)
  ROOT %key = u32[2]{0:T(128)} fusion(%ema), kind=kLoop, calls=%f, metadata={op_name="jit(train_step)/jit(_threefry_fold_in)/xor"}, backend_config={"estimated_cycles":"1"}
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def module():
    return parse(TPU)


@pytest.mark.parametrize(
    ("name", "part", "backward"),
    [
        ("augment", "augmentation", False),
        ("teacher", "teacher", False),
        ("norm", "norms", False),
        ("qkv", "dense layers: qkv", False),
        ("turned", "layout copies", False),
        ("turned_too", "layout copies", True),
        ("attend.1", "attention core", False),
        ("scores", "attention core", True),
        ("loss", "loss and metrics", False),
        ("mlp", "dense layers: MLP", True),  # its product, not its root
        ("proj", "dense layers: proj", True),
        ("start", "collectives", False),
        ("all-reduce.2", "collectives", False),
        ("scattered", "collectives", False),
        ("adam", "optimizer and EMA", False),
        ("ema", "optimizer and EMA", False),
        ("fetch", "prefetches to the chip", False),
        ("key", "other", False),
    ],
)
def test_parts_by_scope(module, name, part, backward):
    assert part_of(module, module.by_name[name]) == (part, backward)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("jvp(VisionTransformer)/patch_embed/proj/conv_general_dilated", "patches and heads"),
        ("jvp(VisionTransformer)/VisionTransformer._blocks/blocks_1/Dropout_1/mul", "dropout and stochastic depth"),
        ("jvp(VisionTransformer)/VisionTransformer._blocks/blocks_1/add", "rest of the model"),
        ("jvp(RegNet)/s1/b1/conv2/conv_general_dilated", "convolutions"),
        ("jvp(RegNet)/s1/b1/bn/rsqrt", "norms"),
        ("jvp(Mixer)/tokens/dot_general", "dense layers: other"),
        ("iota", "other"),
    ],
)
def test_parts_of_other_modules(path, part):
    module = parse(
        f'ENTRY %m (x: f32[]) -> f32[] {{\n  %a = f32[] add(%x, %x), metadata={{op_name="jit(f)/{path}"}}\n}}'
    )
    assert part_of(module, module.by_name["a"])[0] == part


def test_cost_by_part(module):
    cost = cost_of(module, num_devices=4, turns={}, kernels={"attend.1": 300.0}, cycles_per_byte=0.0)
    sums = {(part.name, part.backward): part.cycles for part in cost.parts}
    assert sums["attention core", False] == 300 and sums["attention core", True] == 70
    assert sums["optimizer and EMA", False] == 138 and sums["collectives", False] == 7
    written = sum(item.cycles or 0 for item in module.computations["main_spmd"])
    assert cost.cycles == written + 300 and cost.kernels == {"attend.1": 300.0}
    assert [part.cycles for part in cost.parts] == sorted((part.cycles for part in cost.parts), reverse=True)


def test_kernels_take_at_least_as_long_as_their_transfers(module):
    moved = 128 * 128 * 2 + 8 * 128 * 2  # read, with columns of 8 padded to 128, and written
    cost = cost_of(module, num_devices=4, turns={}, kernels={"attend.1": 300.0}, cycles_per_byte=0.5)
    assert {part.cycles for part in cost.parts if part.name == "attention core"} == {moved / 2, 70}
    unknown = cost_of(module, num_devices=4, turns={}, kernels={}, cycles_per_byte=0.5)
    assert unknown.kernels == {"attend.1": None} and unknown.cycles == cost.cycles - moved / 2


def test_what_follows_a_collective(module):
    cost = cost_of(module, num_devices=4, turns={}, kernels={"attend.1": 399.0})
    assert cost.cycles == 1000
    hidden, waited, scattered = cost.exchanges
    assert (hidden.kind, hidden.sent) == ("all-reduce", 2 * 64 * 3 // 4)
    assert hidden.follows == pytest.approx((90 + 7 + 138 + 1) / 1000) and hidden.overlapped == pytest.approx(0.09)
    assert waited.follows == pytest.approx((7 + 138 + 1) / 1000) and waited.overlapped == 0
    assert (scattered.kind, scattered.overlapped) == ("reduce-scatter", 0)


def test_program_without_cycles():
    """As of a GPU's compiler: FLOPs and bytes by part."""
    text = """ENTRY %main (x: bf16[8,16]) -> bf16[8,4] {
  %x = bf16[8,16]{1,0} parameter(0)
  %w = bf16[16,4]{1,0} parameter(1)
  %y = bf16[8,4]{1,0} custom-call(%x, %w), custom_call_target="__cublas$gemm", metadata={op_name="jit(f)/jvp(V)/mlp/fc1/dot_general"}, backend_config={"lhs_contracting_dimensions":["1"]}
  ROOT %z = bf16[8,4]{1,0} fusion(%y), kind=kLoop, calls=%f, metadata={op_name="jit(f)/optimizer/mul"}
}"""  # noqa: E501
    cost = cost_of(parse(text), num_devices=1, turns={}, kernels={})
    assert cost.cycles is None and cost.as_json(None)["seconds"] is None
    assert [(part.name, part.cycles, part.flops) for part in cost.parts] == [
        ("dense layers: MLP", None, 2 * 8 * 16 * 4),
        ("optimizer and EMA", None, 0),
    ]
    assert cost.bytes == (8 * 16 + 16 * 4 + 8 * 4) * 2 + 2 * 8 * 4 * 2
