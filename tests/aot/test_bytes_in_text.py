import jax
import jax.numpy as jnp
import pytest

from deit_jax.aot.program_report import bytes_in_text

GPU = """
%fused_computation (p0: bf16[8,4], p1: bf16[4]) -> bf16[8,4] {
  %inside = f32[8,4]{1,0} convert(%p0)
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
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


def test_bytes_of_operands_and_results():
    scaled, product, exchanged = 64 + 8 + 64, 64 + 64 + 64 + 50, 64 + 64
    in_loop = 400 + 400
    assert bytes_in_text(GPU) == scaled + product + exchanged + in_loop


@pytest.mark.compiler
def test_estimate_agrees_with_the_compiler():
    def function(images, kernel, weights):
        x = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x, _ = jax.lax.scan(lambda x, w: (jax.nn.gelu(x @ w), None), x.reshape(-1, 64), weights)
        return jnp.sort(jax.nn.softmax(x), axis=0)

    shapes = (16, 8, 8, 32), (3, 3, 32, 64), (4, 64, 64)
    compiled = jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()
    assert bytes_in_text(compiled.as_text()) == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.05)
