import os

import pytest

from deit_jax.aot import kernels
from deit_jax.aot.kernels import cycles_of_kernels, kernel_cycles, request_schedules
from deit_jax.aot.schedule import parse

# The form of libtpu 0.0.50's final bundles, shortened: a loop over a grid of 6, in it an unrolled loop of 12 turns by 4.
BUNDLES = """
LH: loop header
LB: loop body
= control target key end

     0   :  { %s6 = smov 0  ;;  %s163_s0 = inlined_call_operand.hbm [shape: bf16[6,197,2304], index: 0] }
   0x1   :  {}
   0x2 LB: > { %s44_s7 = sadd.s32 4294967295, %s96_s6 /* iteration index, stage = 1 */  ;;  %s96_s6 = sphi %s08_s6, %s11_s6 }
   0x3   : > { %p88_p2 = scmp.lt.s32.totalorder %s96_s6, 7 }
   0x4   :  {}
   0x5 LB: >> { %v19_v0 = vld [vmem:[#allocation3] sm:$0xff]  ;;  %s204_s20 = sadd.s32 4, %s11830_s22 /* copy for cssa */ }
   0x6   : >> { %p15_p1 = scmp.ge.s32.totalorder %s204_s20, 12 /* loop exit test */ }
   0x7   : >> { %203 = sbr.rel (!%p15_p1) target = $region85 }
   0x8   : > { %s11_s6 = sadd.s32 1, %s96_s6 /* iteration index, stage = 0 */ }
   0x9 PF: > { %p8_p4 = scmp.ge.s32.totalorder %s11_s6, 8 /* loop exit test */ }
   0xa   :  { %10 = sbr.rel (!%p8_p4) target = $region54 }
   0xb   :  {} /* exit bundle: %attend.1 = custom-call(%qkv) */
"""

HLO = """
ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %attend.1 = f32[8,128]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"A=="}}
  %attend.12 = f32[8,128]{1,0} custom-call(%attend.1), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"A=="}}
  %other.3 = f32[8,128]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"B=="}}
  ROOT %buffer = f32[8,128]{1,0} custom-call(), custom_call_target="AllocateBuffer"
}
"""  # noqa: E501


def test_bundles_count_as_often_as_their_loops_turn():
    outside, in_grid, in_loop = 4, 5, 3
    assert kernel_cycles(BUNDLES) == outside + 6 * (in_grid + 3 * in_loop)


def test_loop_whose_length_is_not_constant():
    assert kernel_cycles(BUNDLES.replace("%s204_s20, 12 /*", "%s204_s20, %s9_s9 /*")) is None


@pytest.fixture
def arguments(monkeypatch):
    """Restores the compiler's arguments after the test."""
    monkeypatch.setattr(kernels, "_own_folder", None)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--some_flag=1")


def test_equal_kernels_share_a_schedule(arguments, monkeypatch, tmp_path):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", f"--xla_jf_dump_to={tmp_path}")
    request_schedules()
    assert os.environ["LIBTPU_INIT_ARGS"] == f"--xla_jf_dump_to={tmp_path}"  # the user's folder
    (tmp_path / "1700000000000000000-attend.1-00-final_bundles.txt").write_text("     0   :  {}\n")
    (tmp_path / "1700000000000000001-attend.1-00-final_bundles.txt").write_text(BUNDLES)
    (tmp_path / "1700000000000000001-attend.1-00-schedule-analysis_final_bundles.txt").write_text("     0   :  {}\n")
    assert cycles_of_kernels(parse(HLO)) == {"attend.1": 88.0, "attend.12": 88.0, "other.3": None}
    kernels.forget_schedules()
    assert len(list(tmp_path.iterdir())) == 3


def test_schedules_go_to_a_folder_that_is_emptied(arguments):
    request_schedules()
    flags = os.environ["LIBTPU_INIT_ARGS"]
    assert flags.startswith("--some_flag=1 --xla_jf_dump_to=") and "final_bundles" in flags
    folder = kernels._own_folder
    (folder / "1-attend.1-00-final_bundles.txt").write_text(BUNDLES)
    assert cycles_of_kernels(parse(HLO))["attend.12"] == 88.0
    kernels.forget_schedules()
    assert cycles_of_kernels(parse(HLO))["attend.12"] is None
    request_schedules()  # again, for another topology
    assert os.environ["LIBTPU_INIT_ARGS"] == flags
    folder.rmdir()
