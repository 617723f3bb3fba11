import dataclasses
import itertools

import numpy as np
import pytest

from deit_jax.data.joint_order import UNLABELLED_STREAM, JointOrder, joint_mixing_sizes, unlabelled_rows
from deit_jax.data.sampling import TrainOrder

# 24 labelled and 8 unlabelled rows in one part: blocks of 8 positions, groups of 2 rows.
LABELLED = TrainOrder(num_examples=100, batch_size=24, repeats=3, group_size=2, groups_per_block=4, seed=5)
ORDER = JointOrder.of(LABELLED, 70, 8)


@pytest.mark.parametrize(
    ("batch", "share", "options", "rows"),
    [
        (1024, 0.5, {}, 512),
        (1024, 0.3, {}, 320),  # 5 of 16 slices
        (1024, 0.875, {"repeats": 3}, 896),
        (1024, 0.001, {}, 64),  # at least one slice of either kind
        (1024, 0.999, {}, 960),
        (48, 0.3, {"groups_per_block": 4}, 16),  # slices of 8 rows
        (16, 0.3, {"mixes": False}, 5),
        (16, 0.5, {"mixes": False, "group_size": 2, "groups_per_block": 4}, 8),
        (7, 0.5, {"mixes": False}, 4),
    ],
)
def test_the_share_is_rounded_to_what_mixing_groups_allow(batch, share, options, rows):
    options = {"repeats": 1} | options
    assert unlabelled_rows(batch, share, **options) == rows
    repeats = options.pop("repeats")
    group, groups = joint_mixing_sizes(batch, rows, repeats, 256, **options)
    assert groups >= repeats and rows % (group * groups) == 0 and (batch - rows) % (group * groups) == 0
    assert group % 2 == 0 or not options.get("mixes", True)


@pytest.mark.parametrize("options", [{"batch_size": 7}, {"batch_size": 8, "group_size": 4, "groups_per_block": 2}])
def test_a_batch_that_cannot_be_divided_is_refused(options):
    with pytest.raises(
        ValueError, match=r"train\.batch_size=. .*\(unlabelled\.share=0\.5\): use another batch size.*multiple of"
    ):
        unlabelled_rows(share=0.5, repeats=1, **options)


def test_too_few_unlabelled_images_are_refused():
    with pytest.raises(ValueError, match="a batch has 8 unlabelled rows, which exceed the 7 positions"):
        JointOrder.of(LABELLED, 7, 8)


def kinds_of(order, step):
    """The order's images by row, and which are unlabelled."""
    found = order.positions(step)
    images = np.empty(order.batch_size, int)
    images[found.row] = found.image_index
    assert sorted(found.row) == list(range(order.batch_size))
    return images, images >= order.labelled.num_examples


def test_each_kind_has_its_own_order_and_its_own_groups():
    for step in (0, 3, 7, 20):
        images, unlabelled = kinds_of(ORDER, step)
        np.testing.assert_array_equal(unlabelled, ORDER.is_unlabelled())
        groups = unlabelled.reshape(-1, 2)
        assert np.all(groups[:, 0] == groups[:, 1]) and unlabelled.sum() == 8
        alone = LABELLED.positions(step)
        by_row = np.empty(24, int)
        by_row[alone.row] = alone.image_index
        np.testing.assert_array_equal(images[~unlabelled], by_row)
        for group in images.reshape(-1, 2):
            assert len(set(group)) == 2  # an image is never mixed with its own copy


def test_kinds_are_spread_evenly():
    assert np.all(ORDER.is_unlabelled().reshape(4, 8).sum(axis=1) == 2)  # four devices
    even = JointOrder.of(dataclasses.replace(LABELLED, batch_size=16), 70, 16).is_unlabelled()
    assert np.all(even.reshape(2, 4, 4).sum(axis=(0, 2)) == 4)  # two devices, four microbatches


def test_unlabelled_images_do_not_depend_on_the_labelled_ones():
    more = JointOrder.of(dataclasses.replace(LABELLED, num_examples=612, epoch_steps=11), 70, 8)
    for step in range(30):
        one, other = ORDER.positions(step), more.positions(step)
        np.testing.assert_array_equal(one.image_index[24:] - 100, other.image_index[24:] - 612)
        np.testing.assert_array_equal(one.row, other.row)
    same = TrainOrder(70, 8, 3, 2, 4, seed=5)
    assert np.any(same.positions(0).image_index != ORDER.unlabelled.positions(0).image_index)  # another stream
    assert ORDER.unlabelled == dataclasses.replace(same, stream=UNLABELLED_STREAM)


def test_an_epoch_is_one_of_the_labelled_images():
    assert ORDER.steps_per_epoch == LABELLED.steps_per_epoch == 4
    seen = np.concatenate([ORDER.positions(step).image_index[24:] for step in range(8)])  # one pass: 64 of 70 positions
    counts = np.bincount(seen - 100, minlength=70)
    assert counts.max() == 3 and np.count_nonzero(counts) == 22


@pytest.mark.parametrize("by_row", [False, True])
def test_parts_of_a_batch_are_the_whole(by_row):
    order = dataclasses.replace(JointOrder.of(dataclasses.replace(LABELLED, batch_size=48), 70, 16), by_row=by_row)
    assert order.block_size == (1 if by_row else 32)
    whole = order.positions(2)
    edges = [0, 5, 24, 27, 32, 33, 60, 64]
    parts = [order.positions(2, start, stop) for start, stop in itertools.pairwise(edges)]
    assert [len(part.row) for part in parts] == np.diff(edges).tolist()
    found = {row: image for part in parts for image, _, row in zip(*part, strict=True)}
    assert found == {row: image for image, _, row in zip(*whole, strict=True)}
    if by_row:
        assert set(parts[1].row) == set(range(5, 24))
    else:  # whole parts of the batch are in their rows
        assert set(order.positions(2, 32, 64).row) == set(range(32, 64))


def test_copies_of_an_image_are_read_together():
    for step in range(6):
        for position in range(ORDER.batch_size):
            edge = ORDER.end_of_copies(step, position)
            assert position <= edge <= position + 2
            found = ORDER.positions(step, edge, min(edge + 1, 32))
            assert edge in (24, 32) or found.copy[0] == 0 or position == edge == 0


def test_hosts_that_share_a_part_read_by_row():
    assert ORDER.for_stretches([0, 32]) is ORDER
    assert ORDER.for_stretches([0, 16]).by_row
    with pytest.raises(ValueError, match="different mixing groups"):
        JointOrder(LABELLED, dataclasses.replace(LABELLED, group_size=6))
