import jax
import jax.numpy as jnp
import pytest

from deit_jax.aot.program_report import bytes_accessed
from deit_jax.aot.schedule import Array, arrays_of, parse

GPU = """
%fused_computation (p0: bf16[8,4], p1: bf16[4]) -> bf16[8,4] {
  %inside = f32[8,4]{1,0} convert(%p0)
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%cond (t: (s32[], f32[100])) -> pred[] {
  %many = s32[] constant(5)
  %count = s32[] get-tuple-element(%t), index=0
  ROOT %more = pred[] compare(%count, %many), direction=LT
}

%body (t: (s32[], f32[100])) -> (s32[], f32[100]) {
  %turn = f32[100]{0} get-tuple-element(%t), index=1
  %twice = f32[100]{0} fusion(%turn), kind=kLoop, calls=%fused_computation
}

ENTRY %main (x: bf16[8,4], y: bf16[4], g: f32[10]) -> (bf16[8,4]) {
  %x = bf16[8,4]{1,0} parameter(0), metadata={op_name="x"}
  %y = bf16[4]{0} parameter(1)
  %scaled = bf16[8,4]{1,0} fusion(%x, %y), kind=kLoop, calls=%fused_computation
  %product = (bf16[8,4]{1,0}, s8[50]{0}) custom-call(%scaled, %x), custom_call_target="__cublas$lt$matmul"
  %w = (s32[], f32[100]{0}) while(%init), condition=%cond, body=%body
  %start = bf16[8,4]{1,0} all-reduce-start(%scaled), channel_id=1, to_apply=%add
  ROOT %done = bf16[8,4]{1,0} all-reduce-done(%start)
}
"""

# As libtpu writes it, shortened: a loop over chunks, a loop with a length, one of unknown length, a conditional, prefetches.
TPU = """HloModule jit_train_step, is_scheduled=true

%fused_update (p.0: f32[64,128], p.1: f32[1,128], p.2: s32[]) -> f32[64,128] {
  %p.0 = f32[64,128]{1,0:T(8,128)} parameter(0)
  %p.1 = f32[1,128]{1,0:T(1,128)} parameter(1)
  %p.2 = s32[]{:T(128)} parameter(2)
  ROOT %put = f32[64,128]{1,0:T(8,128)} dynamic-update-slice(%p.0, %p.1, %p.2, %p.2)
}

%fused_pick (q.0: f32[64,128], q.1: s32[]) -> f32[1,128] {
  %q.0 = f32[64,128]{1,0:T(8,128)} parameter(0)
  %q.1 = s32[]{:T(128)} parameter(1)
  %row = f32[1,128]{1,0:T(1,128)} dynamic-slice(%q.0, %q.1, %q.1), dynamic_slice_sizes={1,128}
  ROOT %double = f32[1,128]{1,0:T(1,128)} add(%row, %row)
}

%chunks (t: (s32[], f32[64,128])) -> (s32[], f32[64,128]) {
  %a = f32[64,128]{1,0:T(8,128)} get-tuple-element(%t), index=1
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %pick = f32[1,128]{1,0:T(1,128)} fusion(%a, %i), kind=kLoop, calls=%fused_pick, backend_config={"window_config":{"estimated_cycles":"10"}}
  %update = f32[64,128]{1,0:T(8,128)} fusion(%a, %pick, %i), kind=kLoop, calls=%fused_update, backend_config={"estimated_cycles":"20"}
  ROOT %again = (s32[], f32[64,128]) tuple(%i, %update)
}

%more (t: (s32[], f32[64,128])) -> pred[] {
  %n = s32[]{:T(128)} get-tuple-element(%t), index=0
  %m = s32[]{:T(128)} get-tuple-element(%t), index=1
  ROOT %lt = pred[]{:T(512)} compare(%n, %m), direction=LT
}

%cheap (t: f32[64,128]) -> f32[64,128] {
  ROOT %c = f32[64,128]{1,0:T(8,128)S(1)} copy(%t), backend_config={"estimated_cycles":"1"}
}

%dear (t: f32[64,128]) -> f32[64,128] {
  ROOT %d = f32[64,128]{1,0:T(8,128)S(1)} copy(%t), backend_config={"estimated_cycles":"1000"}
}

ENTRY %main_spmd (x: f32[60,100]) -> f32[] {
  %x = f32[60,100]{1,0:T(8,128)} parameter(0)
  %start = (f32[60,100]{1,0:T(8,128)S(1)}, f32[60,100]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %known = (s32[], f32[64,128]) while(%t), condition=%more, body=%chunks, backend_config={"known_trip_count":{"n":"7"}}
  %drawn = (s32[], f32[64,128]) while(%t), condition=%more, body=%chunks, metadata={op_name="jit(f)/while/body/rows_in_chunks_of_4/while"}
  %lost = (s32[], f32[64,128]) while(%t), condition=%more, body=%chunks, metadata={op_name="jit(f)/while"}
  %either = f32[64,128]{1,0:T(8,128)S(1)} conditional(%p, %a, %b), branch_computations={%cheap, %dear}
  %done = f32[60,100]{1,0:T(8,128)S(1)} copy-done(%start)
  %used = bf16[60,100]{1,0:T(8,128)(2,1)} fusion(%done), kind=kLoop, calls=%fused_nothing, backend_config={"estimated_cycles":"3"}
}
"""  # noqa: E501


def test_bytes_of_operands_and_results():
    module = parse(GPU)
    runs, unknown = module.runs({})
    scaled, product, exchanged = 64 + 8 + 64, 64 + 64 + 64 + 50, 64 + 64
    in_loop = 5 * (400 + 400)
    total = sum(run.times * module.main_memory_bytes(run.instruction) for run in runs)
    assert total == scaled + product + exchanged + in_loop and not unknown


def test_loops_run_as_often_as_they_turn():
    runs, unknown = parse(TPU).runs({"rows_in_chunks_of_4": 2.5})
    times = [run.times for run in runs if run.instruction.name == "update"]
    assert times == [7, 2.5, 1] and unknown == ["jit(f)/while"]
    assert [run.times for run in runs if run.instruction.name == "used"] == [1]


def test_loops_within_the_augmentations_loops_have_their_own_turns():
    text = """
%inner (t: s32[]) -> s32[] {
  %add = s32[] fusion(%t), kind=kLoop, calls=%f, backend_config={"estimated_cycles":"1"}
}

%outer (t: s32[]) -> s32[] {
  %three = s32[] while(%t), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"3"}}, metadata={op_name="jit(f)/rows_in_chunks_of_4/while/body/while"}
  %some = s32[] while(%t), condition=%c, body=%inner, metadata={op_name="jit(f)/rows_in_chunks_of_4/while/body/while"}
}

ENTRY %main (t: s32[]) -> s32[] {
  %all = s32[] while(%t), condition=%c, body=%outer, metadata={op_name="jit(f)/rows_in_chunks_of_4/while"}
}
"""  # noqa: E501
    runs, unknown = parse(text).runs({"rows_in_chunks_of_4": 2.5})
    assert [run.times for run in runs] == [7.5, 2.5] and unknown == ["jit(f)/rows_in_chunks_of_4/while/body/while"]


def test_the_branch_with_the_most_cycles_counts():
    runs, _ = parse(TPU).runs({})
    names = {run.instruction.name for run in runs}
    assert "d" in names and "c" not in names
    assert sum(run.times * (run.instruction.cycles or 0) for run in runs) == (7 + 1 + 1) * 30 + 1000 + 3


def test_main_memory_is_apart_from_the_chip():
    module = parse(TPU)
    sizes = {name: module.main_memory_bytes(item) for name, item in module.by_name.items()}
    assert sizes["start"] == 64 * 128 * 4  # padded; one side of the transfer stays on the chip
    assert sizes["done"] == 0 and sizes["known"] == 0
    assert sizes["used"] == 64 * 128 * 2  # its operand is on the chip


def test_slices_count_as_slices():
    module = parse(TPU)
    row, index = 128 * 4, 4
    assert module.main_memory_bytes(module.by_name["pick"]) == row + index + row
    assert module.main_memory_bytes(module.by_name["update"]) == row + row + index


def test_several_arrays_updated_in_place():
    text = """
%fused (p.0: f32[64,8], p.1: f32[1,8], p.2: f32[64,8], p.3: s32[]) -> (f32[64,8], f32[1,8]) {
  %p.0 = f32[64,8]{1,0} parameter(0)
  %p.1 = f32[1,8]{1,0} parameter(1)
  %p.2 = f32[64,8]{1,0} parameter(2)
  %p.3 = s32[] parameter(3)
  %first = f32[64,8]{1,0} dynamic-update-slice(%p.0, %p.1, %p.3, %p.3)
  %row = f32[1,8]{1,0} dynamic-slice(%p.2, %p.3, %p.3), dynamic_slice_sizes={1,8}
  ROOT %both = (f32[64,8]{1,0}, f32[1,8]{1,0}) tuple(%first, %row)
}

ENTRY %main (a: f32[64,8], b: f32[1,8], c: f32[64,8], i: s32[]) -> (f32[64,8], f32[1,8]) {
  %a = f32[64,8]{1,0} parameter(0)
  %b = f32[1,8]{1,0} parameter(1)
  %c = f32[64,8]{1,0} parameter(2)
  %i = s32[] parameter(3)
  ROOT %run = (f32[64,8]{1,0}, f32[1,8]{1,0}) fusion(%a, %b, %c, %i), kind=kLoop, calls=%fused
}
"""
    module = parse(text)
    row = 8 * 4
    assert module.main_memory_bytes(module.by_name["run"]) == (row + row) + (row + row) + 4  # written, read, the index


def test_shapes_with_tiles_and_memory_spaces():
    shape = "(bf16[3,9,130]{1,0,2:T(8,128)(2,1)S(1)}, /*index=1*/u8[5]{0:T(1024)S(0)}, f8e4m3fn[7]{0}, s32[])"
    assert arrays_of(shape) == [
        Array("bf16", (3, 9, 130), 8 * 128 * 130 * 2, on_chip=True),
        Array("u8", (5,), 1024, on_chip=False),
        Array("f8e4m3fn", (7,), 7, on_chip=False),
        Array("s32", (), 4, on_chip=False),
    ]


@pytest.mark.compiler
def test_bytes_agree_with_the_compiler():
    def function(images, kernel, weights):
        x = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.gelu(x.reshape(-1, 64) @ weights)
        return jnp.sort(jax.nn.softmax(x), axis=0)

    shapes = (16, 8, 8, 32), (3, 3, 32, 64), (64, 64)
    compiled = jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()
    module = parse(compiled.as_text())
    runs, _ = module.runs({})
    counted = sum(run.times * module.main_memory_bytes(run.instruction) for run in runs)
    assert counted == pytest.approx(bytes_accessed(compiled), rel=0.05)
