import pytest

from deit_jax.aot.products import flops_of
from deit_jax.aot.schedule import parse

# As CUDA compilers write them, shortened. Inputs of 8 x 8 pixels and 16 channels in two groups, kernels of 3 x 3 to 32 channels.
GPU = """
ENTRY %main (x: bf16[4,5,7]) -> f32[] {
  %a = bf16[4,5,7]{2,1,0} parameter(0)
  %b = bf16[4,7,6]{2,1,0} parameter(1)
  %x = bf16[2,8,8,16]{3,2,1,0} parameter(2)
  %k = bf16[3,3,8,32]{3,2,1,0} parameter(3)
  %dot = f32[4,5,6]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}
  %gemm = (bf16[4,5,6]{2,1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"]}}}
  %y = (bf16[2,8,8,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, feature_group_count=2, custom_call_target="__cudnn$convForward"
  %dy = bf16[2,8,8,32]{3,2,1,0} parameter(4)
  %dx = (bf16[2,8,8,16]{3,2,1,0}, u8[0]{0}) custom-call(%dy, %k), dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convBackwardInput"
  %dk = (bf16[3,3,8,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %dy), dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convBackwardFilter"
  ROOT %sum = f32[4,5,6]{2,1,0} add(%dot, %dot)
}
"""  # noqa: E501
PRODUCT, CONVOLUTION = 2 * 4 * 5 * 6 * 7, 2 * (2 * 8 * 8 * 32) * 3 * 3 * 8


@pytest.mark.parametrize(
    ("name", "flops"),
    [("dot", PRODUCT), ("gemm", PRODUCT), ("y", CONVOLUTION), ("dx", CONVOLUTION), ("dk", CONVOLUTION), ("sum", 0)],
)
def test_flops_of_library_calls(name, flops):
    by_name = parse(GPU).by_name
    assert flops_of(by_name[name], by_name) == flops
