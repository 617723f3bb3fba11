import sys

import pytest

from deit_jax.aot.kernels import cycles_of_kernels, kernel_cycles
from deit_jax.aot.schedule import parse
from deit_jax.aot.topologies import find_topology

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

# The program of a kernel that doubles float32[48, 128] in a grid of 6, as JAX 0.10.2 writes it.
DOUBLE = (
    "TUzvUgFNTElSMjMuMC4wZ2l0AAEhCQEDBQcBAwkDDQsNDxETFQPDnRMBlQcTEwsLDwsLDw8PDwsLC1MLCwsLCw8PEwsPSwsPC4ULMwsLCwsLExsLGwsbGw8P"
    "Dw8bDw8PGxMLDwsPCw8bCw8LDxsjCw8LUwsTBQeRYU0HA1kBEw8HDyMbBxsbCwIGBx8DAyVdAwMlWwUXBRkdfX8FGwUdHSdfHQdjHSdlEQUBBR8FIQUjIwUF"
    "IQgAAAAAAAAAgAAAAAAAAAAFJQ0PBScFKQUrHQd7HQeFAwMxMwUtEQU9AxE3OQ07P0FDF0UXD0dJmUtNBS8BA5UNDWFmZmluZV9tYXA8KGQwLCBkMSkgLT4g"
    "KGQwLCBkMSk+AAUxIwUDEQYAAAAAAAAABTMFNQU3BTkFOwEFT1MDBRlRHR8JGwMFGVUdHwkhAwUNIw8bAwUNIw8hEQEBEQMBHSlhFRMTLQkHGSk1HSlnFRNp"
    "HQdrLQkHGTdDAwNvmwU9HXN1BT8dd3kFQRUrKy0JBxkpQwVDHYGDBUUVLS0tCQcZGycDB4mLjY+RkwVHEREABUkjAQkhAQAAAAEAAAACAAAAAAAAAAVLIwEB"
    "ASN0cHUuZGltZW5zaW9uX3NlbWFudGljczxhcmJpdHJhcnk+ACN0cHUubWVtb3J5X3NwYWNlPHZtZW0+ACN0cHUuY29yZV90eXBlPHRjPgAjYXJpdGguZmFz"
    "dG1hdGg8bm9uZT4AAQICAwECBBeXBSECBAs9JwUhAgQLCwUHAQcHAQUDAQUBAQEJBJoCBQERAS8HAwENBREBNQcDGzMHAQEHAQcBAwMRAwMDAwMRAwMDCQYR"
    "AwkHAwcJAwMVAwMDAwMVAwMDCQYVAwkHAw0PCwdxbQMJBQsRAwMLAwMDAwMLAwMDCQYLAwkHBRUXDQULhwkTBRUXBwABBREBVwcDBw8DAQEDAwEFAwEDAwEF"
    "AwEHBAEFAQMFEQFZBwMHDwMBAQMDAQUDAQMDAQUDAQcEAQUBAwYDAQUBADoHTREpCRUNEQsTHR0PIyEjKS0RCw0ZHRklEx0VBSMXGRkVHw8NCR0RYnVpbHRp"
    "bgBzdGFibGVfbW9zYWljAHRwdQBhcml0aABtb2R1bGUAYXJpdGguY29uc3RhbnQAZnVuYy5mdW5jAGZ1bmMucmV0dXJuAHZlY3Rvci5sb2FkAGFyaXRoLmFk"
    "ZGYAdHB1LnZlY3Rvcl9zdG9yZQBrAGtlcm5lbC5weQBmdW5jdGlvbl90eXBlAHN5bV9uYW1lAHRyYW5zZm9ybV9pbmRpY2VzAHRyYW5zZm9ybV8wAHdpbmRv"
    "d19ib3VuZHMAdHJhbnNmb3JtXzEAdmFsdWUAZ2V0OgBnZXQvZ2V0AHN0YWJsZV9tb3NhaWMudmVyc2lvbgBkaW1lbnNpb25fc2VtYW50aWNzAGl0ZXJhdGlv"
    "bl9ib3VuZHMAc2NhbGFyX3ByZWZldGNoAHNjcmF0Y2hfb3BlcmFuZHMAZG91YmxlAHRwdS5jb3JlX3R5cGUAd2luZG93X3BhcmFtcwBmYXN0bWF0aABhZGQ6"
    "AGFkZC9hZGQAc3dhcDoAc3dhcC9zd2FwAGFkZABvcGVyYW5kU2VnbWVudFNpemVzAHN0cmlkZXMA"
)
HLO = """
ENTRY %main (x: f32[48,128]) -> f32[48,128] {
  %x = f32[48,128]{1,0:T(8,128)} parameter(0)
  %double.1 = f32[48,128]{1,0:T(8,128)S(1)} custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"flag_configs":[],"scoped_memory_configs":[],"custom_call_config":{"body":"BODY","needs_layout_passes":true,"serialization_format":"1"},"retry_config":{"retry_count":"0"}}
  %double.2 = f32[48,128]{1,0:T(8,128)} custom-call(%double.1), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"BODY","needs_layout_passes":true,"serialization_format":"1"},"scoped_memory_configs":[]}
  ROOT %buffer = f32[8,128]{1,0} custom-call(), custom_call_target="AllocateBuffer"
}
""".replace("BODY", DOUBLE)  # noqa: E501


def test_bundles_count_as_often_as_their_loops_turn():
    outside, in_grid, in_loop = 4, 5, 3
    assert kernel_cycles(BUNDLES) == outside + 6 * (in_grid + 3 * in_loop)


def test_loop_whose_length_is_not_constant():
    assert kernel_cycles(BUNDLES.replace("%s204_s20, 12 /*", "%s204_s20, %s9_s9 /*")) is None


@pytest.mark.compiler
def test_kernels_are_compiled_by_themselves():
    pytest.importorskip("libtpu", reason="libtpu, the compiler for TPUs, is not installed")
    found = cycles_of_kernels(parse(HLO), find_topology("v5e-4"))
    assert set(found) == {"double.1", "double.2"} and found["double.1"] == found["double.2"]
    assert 6 * 20 < found["double.1"] < 6 * 500  # a load, an addition and a store, and the transfers' bookkeeping


def test_kernel_that_does_not_compile_is_not_known(capsys, monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    assert cycles_of_kernels(parse(HLO), find_topology("v5e-4")) == {"double.1": None, "double.2": None}
    assert "warning: the schedules of the Pallas kernels are not known (no message)" in capsys.readouterr().out


def test_modules_without_kernels_start_no_process(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere")
    assert cycles_of_kernels(parse("ENTRY %main (x: f32[8]) -> f32[8] {\n}"), find_topology("v5e-4")) == {}


@pytest.mark.compiler
def test_kernel_that_the_compiler_rejects_is_not_known(capsys):
    pytest.importorskip("libtpu", reason="libtpu, the compiler for TPUs, is not installed")
    text = HLO.replace(DOUBLE, "Tm8gcHJvZ3JhbQ==", 1)  # of the first only
    found = cycles_of_kernels(parse(text), find_topology("v5e-4"))
    assert found["double.1"] is None and found["double.2"] > 0 and not capsys.readouterr().out
