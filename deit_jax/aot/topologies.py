"""Accelerators to compile for without having them: names, sizes and published peak figures."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from deit_jax.errors import UserError

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device. Rates are the manufacturers' published peak figures, which most programs do not reach.

    Sources: TPU rates, cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} (interconnect: half of the bidirectional figure). GPU rates,
    NVIDIA's data sheets of H100 SXM5, H200 SXM and A100 SXM4 80GB, dense, without sparsity.
    """

    name: str
    memory: int  # bytes available to a program
    memory_note: str  # the source of that number
    peak_flops: float  # bfloat16 FLOP/s
    memory_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s that a device can send to its neighbors over all links together
    # Cycles/s of a TPU core: the peak rate divided by the FLOPs of its matrix units in a cycle. None: a GPU, whose compiler
    # reports no cycles.
    clock: float | None = None


def _tpu(name: str, memory_gib: float, published: str, tflops: float, gb: float, links_gb: float, ghz: float) -> Chip:
    # The memory that the compiler of libtpu 0.0.52 allows, as its out-of-memory message reports.
    note = f"what the compiler leaves to a program of the published {published}"
    return Chip(name, int(memory_gib * _GIB), note, tflops * 1e12, gb * 1e9, links_gb * 1e9, ghz * 1e9)


def _gpu(name: str, memory: int, tflops: float, gb: float, links_gb: float) -> Chip:
    note = f"75 % of the {memory / _GIB:.1f} GiB: JAX's default share; XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 gives more"
    return Chip(name, int(0.75 * memory), note, tflops * 1e12, gb * 1e9, links_gb * 1e9)


_H100_BYTES, _A100_BYTES = 84_942_979_072, 85_100_068_864  # as reported by the cards

V4 = _tpu("TPU v4", 30.75, "32 GiB", 275, 1228, 300, 1.05)
V5E = _tpu("TPU v5e", 15.75, "16 GiB", 197, 819, 200, 1.5)
V5P = _tpu("TPU v5p", 95.73, "96 GiB", 459, 2765, 600, 1.75)
V6E = _tpu("TPU v6e", 31.24, "32 GiB", 918, 1638, 400, 1.75)
H100 = _gpu("H100 SXM 80GB", _H100_BYTES, 989, 3352, 450)
# Listed for MFU only; its processor is that of the H100, so compile for H100.
H200 = _gpu("H200 SXM 141GB", 143_771 * 2**20, 989, 4800, 450)
A100 = _gpu("A100 SXM 80GB", _A100_BYTES, 312, 2039, 300)


@dataclasses.dataclass(frozen=True)
class Topology:
    """A number of devices of one kind, and their connections."""

    name: str  # as in the clouds: v4 and v5p count two cores per chip, the others chips
    chip: Chip
    num_devices: int  # as seen by JAX
    platform: str  # "tpu" or "cuda"
    arguments: dict[str, Any]  # for jax.experimental.topologies.get_topology_desc


def _all() -> dict[str, Topology]:
    found = []
    arguments: dict[str, Any]
    for kind, chip, prefix in (("v4", V4, "v4"), ("v5p", V5P, "v5")):
        for shape in (
            (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8),
        ):  # fmt: skip
            chips = shape[0] * shape[1] * shape[2]
            # megacore: a chip's two cores are one device. Otherwise the compiler sees two devices with half the memory.
            arguments = {"topology_name": f"{prefix}:{'x'.join(map(str, shape))}", "chip_config_name": "megacore"}
            found.append(Topology(f"{kind}-{2 * chips}", chip, chips, "tpu", arguments))
    for kind, chip in (("v5e", V5E), ("v6e", V6E)):
        for rows, columns in ((2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)):
            arguments = {"topology_name": f"{kind}:{rows}x{columns}"}
            if rows * columns == 8:
                arguments["chips_per_host_bounds"] = (2, 4, 1)  # one machine with eight chips, not two with four
            found.append(Topology(f"{kind}-{rows * columns}", chip, rows * columns, "tpu", arguments))
    for kind, chip, target in (("h100", H100, _H100_TARGET), ("a100", A100, _A100_TARGET)):
        for count in (1, 2, 4, 8):
            arguments = {"topology": f"1x1x{count}", "target_config": target}  # slices x processes x devices
            found.append(Topology(f"{kind}-{count}", chip, count, "cuda", arguments))
    return {topology.name: topology for topology in found}


def _target(
    name: str,
    capability: str,
    memory: int,
    bandwidth: float,
    *,
    cores: int,
    units: int,
    shared: int,
    cache: int,
    ghz: float,
) -> str:
    """Returns XLA's description of a GPU, a GpuTargetConfigProto in text form."""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_core: {shared}  shared_memory_per_block_optin: {shared - 1024}
  core_count: {cores}  fpus_per_core: {units}  clock_rate_ghz: {ghz}
  memory_bandwidth: {int(bandwidth)}  l2_cache_size: {cache}  device_memory_size: {memory}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  cuda_compute_capability {{ {capability} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""


_H100_TARGET = _target(
    "NVIDIA H100 80GB HBM3", "major: 9 feature_extension: ACCELERATED_FEATURES", _H100_BYTES, H100.memory_bandwidth,
    cores=132, units=128, shared=233472, cache=50 << 20, ghz=1.98,
)  # fmt: skip
_A100_TARGET = _target(
    "NVIDIA A100-SXM4-80GB", "major: 8", _A100_BYTES, A100.memory_bandwidth,
    cores=108, units=64, shared=167936, cache=40 << 20, ghz=1.41,
)  # fmt: skip

TOPOLOGIES = _all()


# Substrings of JAX's device kinds.
_KINDS = (
    ("TPU v4", V4), ("TPU v5 lite", V5E), ("TPU v5e", V5E), ("TPU v5p", V5P), ("TPU v5", V5P), ("TPU v6 lite", V6E),
    ("TPU v6e", V6E), ("H100", H100), (" H200", H200), ("A100", A100),
)  # fmt: skip


def find_chip(device_kind: str) -> Chip | None:
    """Returns the chip that JAX calls `device_kind` (`jax.Device.device_kind`); None if it is not listed, as for a CPU."""
    return next((chip for name, chip in _KINDS if name in device_kind), None)


def peak_flops(device_kind: str, configured_tflops: float | None) -> float | None:
    """Returns a device's peak FLOP/s: as configured (config.log.peak_tflops), else as published for its kind, else None."""
    if configured_tflops is not None:
        return configured_tflops * 1e12
    chip = find_chip(device_kind)
    return None if chip is None else chip.peak_flops


def find_topology(name: str) -> Topology:
    """Returns the topology of that name; raises UserError, with all names and the nearest first, if there is none."""
    if name not in TOPOLOGIES:
        near = difflib.get_close_matches(name, TOPOLOGIES, n=3, cutoff=0.3)
        names = near + [other for other in TOPOLOGIES if other not in near]
        raise UserError(f"--topology={name}: there is no such topology; nearest first: {', '.join(names)}")
    return TOPOLOGIES[name]
