import pytest

from deit_jax.aot.topologies import A100, H100, H200, TOPOLOGIES, V4, V5E, V5P, V6E, find_chip, find_topology
from deit_jax.errors import UserError


def test_names_count_as_in_the_clouds():
    assert find_topology("v5e-8").num_devices == 8
    assert find_topology("v4-64").num_devices == 32  # cores to chips
    assert find_topology("v4-8").arguments["chip_config_name"] == "megacore"
    assert find_topology("v5p-128").arguments["topology_name"] == "v5:4x4x4"
    assert {f"{kind}-{count}" for kind in ("v5e", "v6e") for count in (4, 8, 16, 32, 64, 128, 256)} <= set(TOPOLOGIES)
    assert {"h100-1", "h100-8", "a100-1", "a100-8", "v5p-8"} <= set(TOPOLOGIES)
    assert find_topology("h100-8").arguments["topology"] == "1x1x8"  # one machine of eight


def test_unknown_name_raises_with_names_nearest_first():
    with pytest.raises(
        UserError, match=r"--topology=v5e-9: there is no such topology; nearest first: v5e-\d+, "
    ) as error:
        find_topology("v5e-9")
    assert all(name in str(error.value) for name in TOPOLOGIES) and "\n" not in str(error.value)


def test_figures_are_in_base_units():
    for topology in TOPOLOGIES.values():
        chip = topology.chip
        assert 10 * 2**30 < chip.memory < 200 * 2**30
        assert 1e14 < chip.peak_flops < 1e16
        assert 1e11 < chip.link_bandwidth < chip.memory_bandwidth < 1e13
        # All of them do more than a hundred operations per byte.
        assert 100 < chip.peak_flops / chip.memory_bandwidth < 1000


@pytest.mark.parametrize(
    ("kind", "chip"),
    [("TPU v4", V4), ("TPU v5 lite", V5E), ("TPU v5", V5P), ("TPU v6 lite", V6E), ("NVIDIA H100 80GB HBM3", H100),
     ("NVIDIA H200", H200), ("NVIDIA GH200 480GB", None), ("NVIDIA A100-SXM4-80GB", A100), ("cpu", None),
     ("NVIDIA GeForce RTX 4090", None)],
)  # fmt: skip
def test_find_chip_by_device_kind(kind, chip):
    assert find_chip(kind) is chip
