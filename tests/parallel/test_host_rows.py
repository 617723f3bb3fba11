"""Which rows each process reads, on meshes of absent devices: batches do not depend on the number of hosts."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from deit_jax.aot.compiling import stay_off_devices, topology_devices
from deit_jax.aot.topologies import find_topology
from deit_jax.data.decoding import CenterCrop, RandomResizedCrop
from deit_jax.data.loading import eval_batches, train_batches
from deit_jax.data.sampling import TrainOrder
from deit_jax.data.sources import ArraySource
from deit_jax.parallel.host_rows import HostRows, deal_on_devices, gathers_rows, host_rows, owned_rows
from deit_jax.parallel.mesh import BATCH_AXES, make_mesh
from deit_jax.parallel.sharding import split_rows
from tests.end_to_end.commands import forked_together, free_port
from tests.parallel import interleaved

# The process of each device in the order of JAX's mesh [data, fsdp] over the links of these slices.
V5E_16 = [0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0]
V4_32 = [0, 1, 2, 3] * 4
V5E_16_FSDP_4 = [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]


@dataclasses.dataclass(frozen=True)
class Absent:
    """An absent device."""

    id: int
    process_index: int
    platform: str = "tpu"
    device_kind: str = "TPU"
    client: object = None


def mesh_of(processes, fsdp=1):
    devices = np.array([Absent(number, process) for number, process in enumerate(processes)])
    return Mesh(devices.reshape(-1, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def in_process_order(hosts, devices=4, fsdp=1):
    return mesh_of(np.repeat(np.arange(hosts), devices), fsdp)


def images(count=4096):
    """Images of different colors; the label is the index."""
    pixels = np.arange(count)[:, None, None, None] // np.array([1, 256, 65536]) % 256
    return ArraySource(
        np.broadcast_to(pixels, (count, 6, 6, 3)).astype(np.uint8), np.arange(count), tuple(map(str, range(count)))
    )


SOURCE = images()


class Counting:
    """Counts the reads of images."""

    class_names = SOURCE.class_names

    def __init__(self):
        self.reads = []

    def __len__(self):
        return len(SOURCE)

    def __getitem__(self, index):
        self.reads.append(index)
        return SOURCE[index]

    def describe(self, index):
        return str(index)


def read(order, rows, step=1, source=SOURCE):
    options = {
        "start_step": step,
        "stop_step": step + 1,
        "stretches": rows.stretches,
        "dealt": rows.dealt,
        "num_threads": 0,
    }
    return next(iter(train_batches(source, order, RandomResizedCrop(4), **options)))


def global_batch(mesh, order):
    """The batch on the devices of a mesh after every host has read its rows and the step has dealt them."""
    everyone = host_rows(mesh, order.batch_size, order.block_size)
    batch = {}
    for process, rows in everyone.items():
        part = read(order, rows)
        # As in put_batch: a host's rows, in ascending order, go to the devices that own them.
        owned = [
            n for start, stop in owned_rows(split_rows(mesh), order.batch_size)[process] for n in range(start, stop)
        ]
        for name, values in part.items():
            batch.setdefault(name, np.zeros((order.batch_size, *values.shape[1:]), values.dtype))[owned] = values
    if everyone[0].dealt:
        return batch
    deal = jax.jit(deal_on_devices(make_mesh(), order.group_size, order.groups_per_block))
    return jax.tree.map(np.asarray, deal(batch))


def assert_same(one, other):
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


# The published recipes on ImageNet: batch, repeats, group size and groups per block.
PUBLISHED = {"Ti and S": (1024, 3, 256, 4), "B": (1024, 3, 64, 4), "384 pixels": (512, 3, 32, 4)}
# The exception: slices do not divide its blocks evenly, so devices gather the batch.
TRANSFER = (768, 3, 64, 4)


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_batch_does_not_depend_on_the_number_of_hosts(recipe):
    batch, repeats, group, groups = PUBLISHED[recipe]
    order = TrainOrder(len(SOURCE), batch, repeats, group, groups, seed=7)
    one = read(order, HostRows(((0, batch),)))
    for hosts in (2, 4, 8, 16, 64):
        assert_same(global_batch(in_process_order(hosts), order), one)
    assert_same(global_batch(in_process_order(8, devices=1), order), one)
    for mesh in (mesh_of(V5E_16), mesh_of(V4_32), mesh_of(V5E_16_FSDP_4, fsdp=4)):
        assert_same(global_batch(mesh, order), one)


@pytest.mark.parametrize(("group", "groups"), [(256, 4), (64, 4), (512, 3)])
def test_three_hosts_share_a_batch_of_3072(group, groups):
    order = TrainOrder(len(SOURCE), 3072, 3, group, groups, seed=1)
    one = read(order, HostRows(((0, 3072),)), step=0)
    mesh = in_process_order(3)
    everyone = host_rows(mesh, 3072, order.block_size)
    assert everyone[0].dealt == (groups == 4)  # blocks of 1024 and 256 rows, and of 1536
    parts = [read(order, everyone[process], step=0) for process in range(3)]
    batch = {name: np.concatenate([part[name] for part in parts]) for name in one}
    if not everyone[0].dealt:
        batch = jax.tree.map(np.asarray, jax.jit(deal_on_devices(make_mesh(), group, groups))(batch))
    assert_same(batch, one)


@pytest.mark.parametrize(
    ("mesh", "rows"),
    [
        (mesh_of(V5E_16), 1024), (mesh_of(V4_32), 512), (mesh_of(V5E_16_FSDP_4, fsdp=4), 48), (in_process_order(64), 1024),
        (in_process_order(3, devices=2), 30), (in_process_order(1, devices=8, fsdp=4), 16),
    ],
)  # fmt: skip
def test_hosts_read_the_rows_they_own(mesh, rows):
    everyone = host_rows(mesh, rows)
    per_device = rows // mesh.size
    expected = {}
    for number, device in enumerate(mesh.devices.flat):
        expected.setdefault(device.process_index, []).extend(range(number * per_device, (number + 1) * per_device))
    read = {
        process: [n for start, stop in host.stretches for n in range(start, stop)] for process, host in everyone.items()
    }
    assert read == expected
    assert sorted(itertools.chain(*read.values())) == list(range(rows))
    assert {host.count for host in everyone.values()} == {rows // len(expected)}


def test_whole_blocks_are_dealt_on_hosts_and_others_on_devices():
    assert host_rows(in_process_order(4), 1024, 256)[3] == HostRows(((768, 1024),), dealt=True)
    assert host_rows(in_process_order(4), 1024, 1024)[3] == HostRows(((768, 1024),), dealt=False)
    # Only process 3 has a whole block there, but all must deal in the same way.
    scattered = host_rows(mesh_of(V5E_16), 1024, 256)
    assert scattered[3] == HostRows(((512, 768),), dealt=False)
    assert scattered[0].stretches == ((0, 128), (384, 448), (960, 1024))
    for block in (1024, 256, 8):
        assert host_rows(make_mesh(), 1024, block) == {0: HostRows(((0, 1024),), dealt=True)}


def test_host_decodes_each_image_once_and_shares_at_most_two():
    order = TrainOrder(len(SOURCE), 1024, 3, 256, 4, seed=2)
    sources = []
    for rows in host_rows(in_process_order(16), 1024, order.block_size).values():
        sources.append(Counting())
        read(order, rows, source=sources[-1])
    reads = [source.reads for source in sources]
    assert all(len(set(own)) == len(own) for own in reads)
    for own, following in itertools.pairwise(reads):
        assert len(set(own) & set(following)) <= 1
    assert len(set().union(*map(set, reads))) >= sum(map(len, reads)) - 15


@pytest.mark.parametrize("mesh", [mesh_of(V5E_16), in_process_order(3, devices=2)])
def test_evaluation_reads_every_image_once(mesh):
    source, rows = images(100), 48
    seen = []
    for host in host_rows(mesh, rows).values():
        for batch in eval_batches(source, CenterCrop(4), rows, stretches=host.stretches, num_threads=0):
            assert len(batch["mask"]) == host.count
            seen += batch["label"][batch["mask"]].tolist()
    assert sorted(seen) == list(range(100))


def test_gathering_the_whole_batch_is_detected():
    mesh = make_mesh()
    for rows, group, groups in ((64, 8, 4), (64, 16, 4), (96, 8, 4)):
        deal = deal_on_devices(mesh, group, groups)
        assert gathers_rows(mesh, deal, rows) == (rows == 96)


# --- Real slices, whose devices libtpu knows ------------------------------------------------------------------------------


def topology_mesh(name, fsdp):
    pytest.importorskip("libtpu", reason="libtpu, the compiler for TPUs, is not installed")
    stay_off_devices()
    return make_mesh(topology_devices(find_topology(name)), fsdp=fsdp)


@pytest.mark.compiler
@pytest.mark.parametrize("fsdp", [1, 4])
@pytest.mark.parametrize("name", ["v4-32", "v5e-16", "v5e-64", "v5e-256"])
def test_every_row_of_a_slice_is_read_once_by_its_owner(name, fsdp):
    mesh = topology_mesh(name, fsdp)
    everyone = host_rows(mesh, 1024)
    read = np.full(1024, -1)
    for process, rows in everyone.items():
        for start, stop in rows.stretches:
            assert (read[start:stop] == -1).all()
            read[start:stop] = process
        assert fsdp > 1 or len(rows.stretches) == 1
    owners = [device.process_index for device in mesh.devices.flat]
    np.testing.assert_array_equal(read, np.repeat(owners, 1024 // mesh.size))


@pytest.mark.compiler
@pytest.mark.parametrize("recipe", PUBLISHED)
@pytest.mark.parametrize(("name", "fsdp"), [("v5e-16", 1), ("v5e-16", 4), ("v5e-256", 1), ("v5e-256", 4)])
def test_published_batches_are_dealt_without_gathering(name, fsdp, recipe):
    mesh = topology_mesh(name, fsdp)
    batch, _, group, groups = PUBLISHED[recipe]
    deal = deal_on_devices(mesh, group, groups)
    assert not gathers_rows(mesh, deal, batch)
    pixels = jax.ShapeDtypeStruct((batch, 224, 224, 3), np.uint8, sharding=split_rows(mesh))
    text = jax.jit(deal).lower({"image": pixels}).compile().as_text()
    assert "all-to-all" in text and "all-gather" not in text and "all-reduce" not in text
    assert ("collective-permute" in text) == (math.prod((group, groups)) // 4 > batch // mesh.size)


@pytest.mark.compiler
@pytest.mark.parametrize("name", ["v5e-16", "v5e-64"])
def test_transfer_batch_is_gathered(name):
    mesh = topology_mesh(name, 1)
    batch, _, group, groups = TRANSFER
    assert gathers_rows(mesh, deal_on_devices(mesh, group, groups), batch)
    # Three groups per block, one per copy of an image; four hosts of four devices then hold whole blocks.
    assert host_rows(mesh, batch, group * 3)[0].dealt == (name == "v5e-16")


def test_three_groups_per_block_let_four_hosts_deal_the_transfer_batch():
    batch, repeats, group, groups = TRANSFER
    mesh = in_process_order(4)
    assert not host_rows(mesh, batch, group * groups)[0].dealt and host_rows(mesh, batch, group * 3)[0].dealt
    for hosts, of_block in ((4, groups), (4, 3), (16, groups)):
        order = TrainOrder(len(SOURCE), batch, repeats, group, of_block, seed=3)
        assert_same(global_batch(in_process_order(hosts), order), read(order, HostRows(((0, batch),))))


# --- Real processes -------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_two_processes_with_alternating_devices_place_every_row():
    address = f"127.0.0.1:{free_port()}"
    for done in forked_together(interleaved.main, [(address, "2", str(process)) for process in range(2)], devices=2):
        assert done.returncode == 0 and "every row is where it belongs" in done.stdout, done.stderr[-3000:]
