"""A run that resumes with another number of processes uses the same data, crops and augmentations."""

import jax
import numpy as np
import pytest

from deit_jax.data.loading import train_batches
from deit_jax.data.registry import open_source, train_crop
from deit_jax.parallel.host_rows import deal_on_devices
from deit_jax.parallel.mesh import make_mesh
from deit_jax.training.plan import resolve
from tests.end_to_end.commands import forked_together, free_port, train_rows

from .observed_run import config_for, observed_run


def stretch(workdir, records, steps, processes):
    """Runs to `steps` with real processes; adds their inputs to `records`."""
    address = f"127.0.0.1:{free_port()}"
    paths = [workdir.parent / f"{workdir.name}_{steps}_{number}.npz" for number in range(processes)]
    clusters = [(address, processes, number) if processes > 1 else () for number in range(processes)]
    calls = [(workdir, path, steps, *more) for path, more in zip(paths, clusters, strict=True)]
    for done in forked_together(observed_run, calls):
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for path in paths:
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
        assert not found.keys() & records.keys()
        records |= found


@pytest.mark.long
def test_four_processes_then_one_then_two_read_what_one_reads(tmp_path):
    """Rule 8 of deit_jax/training/loop.py."""
    elastic, whole = {}, {}
    for steps, processes in ((2, 4), (4, 1), (6, 2)):
        stretch(tmp_path / "elastic", elastic, steps, processes)
    stretch(tmp_path / "whole", whole, 6, 1)
    assert elastic.keys() == whole.keys() and len(whole) == 6 * 32 * 4
    for name, value in whole.items():
        if name.startswith("augmented"):  # floats, to their last digit
            np.testing.assert_allclose(elastic[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(elastic[name], value, err_msg=name)
    losses = [
        [(row["step"], row["train/loss"]) for row in train_rows(tmp_path / name)] for name in ("elastic", "whole")
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_a_resumed_reader_on_other_hosts_reads_the_same_rows():
    config = config_for(6)
    source = open_source(config.data, "train")
    plan = resolve(config, num_images=len(source), data_classes=10)
    crop, order = train_crop(config.data, plan.image_size), plan.order
    assert (order.batch_size, order.group_size, order.groups_per_block) == (32, 8, 2)
    deal_batch = jax.jit(deal_on_devices(make_mesh(), order.group_size, order.groups_per_block))

    def rows(start, stop, hosts):
        share = order.batch_size // hosts
        dealt = share % order.block_size == 0  # four hosts have half a block each, whose rows are grouped in the step
        assert dealt == (hosts < 4)
        options = {"start_step": start, "stop_step": stop, "num_threads": 0, "dealt": dealt}
        shares = [((share * host, share * (host + 1)),) for host in range(hosts)]
        parts = [list(train_batches(source, order, crop, stretches=one, **options)) for one in shares]
        batches = [
            {name: np.concatenate([part[i][name] for part in parts]) for name in parts[0][0]}
            for i in range(stop - start)
        ]
        return batches if dealt else [jax.tree.map(np.asarray, deal_batch(batch)) for batch in batches]

    whole = rows(0, 6, 1)
    elastic = rows(0, 2, 4) + rows(2, 4, 1) + rows(4, 6, 2)
    for one, other in zip(whole, elastic, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
