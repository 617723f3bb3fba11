import hashlib
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from deit_jax.data import sampling
from deit_jax.data.sampling import TrainOrder, batch_of_larger_groups, mixing_sizes, selected_positions

GOLDEN = np.load(Path(__file__).parent / "sampler.npz")
CASES = sorted({name.removesuffix("_ranks") for name in GOLDEN if name.endswith("_ranks")})


def order(**changes) -> TrainOrder:
    fields = dict(num_examples=1300, batch_size=96, repeats=3, group_size=8, groups_per_block=4, seed=5)
    return TrainOrder(**{**fields, **changes})


def list_of_epoch(order, epoch):
    """The order's list of images in an epoch, batch after batch."""
    first = epoch * order.steps_per_epoch
    return np.concatenate([order.positions(first + t).image_index for t in range(order.steps_per_epoch)])


@pytest.fixture
def repeated_order(monkeypatch):
    """(permutation of an epoch, repeats) -> the order's list of that epoch."""

    def repeated(permutation, repeats):
        monkeypatch.setattr(sampling, "_permutation", lambda *_: permutation)
        return list_of_epoch(order(num_examples=len(permutation), batch_size=256, repeats=repeats), 0)

    return repeated


@pytest.mark.parametrize("case", CASES)
def test_repeated_order_equals_the_reference_ranks(case, repeated_order):
    images, ranks, repeats = map(int, case.split("_"))
    per_rank = GOLDEN[f"{case}_ranks"]
    ours = repeated_order(GOLDEN[f"{case}_permutation"], repeats)
    assert len(ours) == selected_positions(images)
    for rank in range(ranks):
        np.testing.assert_array_equal(ours[rank::ranks][: per_rank.shape[1]], per_rank[rank])
    # So the global batch of any step has the same images, including copies.
    rows = 16
    for t in range(per_rank.shape[1] // rows):
        theirs = Counter(per_rank[:, t * rows : (t + 1) * rows].ravel().tolist())
        assert theirs == Counter(ours[t * rows * ranks : (t + 1) * rows * ranks].tolist())


@pytest.mark.parametrize("ranks", [1, 4, 8])
def test_repeated_order_of_imagenet_equals_the_reference_ranks(ranks, repeated_order):
    permutation = np.random.RandomState(5).permutation(1281167)  # as record_sampler.py uses instead of PyTorch's
    ours = repeated_order(permutation, 3)
    for rank, digest in enumerate(GOLDEN[f"imagenet_{ranks}"]):
        assert len(ours[rank::ranks]) == 1281024 // ranks
        assert hashlib.sha256(ours[rank::ranks].astype("<i4").tobytes()).hexdigest() == digest


def test_batches_follow_the_repeated_order():
    it = order()
    assert it.steps_per_epoch == 1280 // 96
    entries = list_of_epoch(it, 2)
    permutation = entries[::3]
    assert len(set(permutation.tolist())) == len(permutation)
    np.testing.assert_array_equal(entries, np.repeat(permutation, 3)[: len(entries)])
    copies = np.concatenate([it.positions(2 * it.steps_per_epoch + t).copy for t in range(it.steps_per_epoch)])
    np.testing.assert_array_equal(copies, np.arange(len(entries)) % 3)


def test_an_epoch_has_a_third_of_the_images_and_training_all():
    it = order(num_examples=1536)
    seen = [set(list_of_epoch(it, epoch).tolist()) for epoch in range(20)]
    assert {len(images) for images in seen} == {1536 // 3}
    assert len(set.union(*seen)) > 1530  # probability that an image is missed in 20 epochs: (2/3)^20
    assert seen[0] != seen[1]


def test_imagenet_figures():
    it = order(num_examples=1281167, batch_size=1024, group_size=64)
    assert selected_positions(1281167) == 1281024
    assert it.steps_per_epoch == 1251
    first = it.positions(0).image_index
    assert len(set(first.tolist())) == 342  # 1024 / 3, rounded up


def test_rows_are_a_permutation_and_copies_never_share_a_group():
    it = order(batch_size=192)
    for step in range(it.steps_per_epoch):
        image, copy, row = it.positions(step)
        assert sorted(row.tolist()) == list(range(192))
        group, block = row // it.group_size, row // it.block_size
        assert len(set(zip(image.tolist(), group.tolist(), strict=True))) == 192
        blocks = {}
        for i, b in zip(image.tolist(), block.tolist(), strict=True):
            blocks.setdefault(i, set()).add(b)
        # Six blocks: each of the five boundaries splits at most one image's copies.
        assert sum(len(b) > 1 for b in blocks.values()) <= 5
        assert copy.max() == 2


def test_explicit_layout():
    it = order(num_examples=300, batch_size=12, group_size=2, groups_per_block=3, repeats=3)
    image, _, row = it.positions(0)
    by_row = np.empty(12, int)
    by_row[row] = np.arange(12)
    # Two blocks of three groups of two rows: position p of a block goes to group p % 3.
    assert by_row.tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    a, b = image[0], image[3]
    assert image[:6].tolist() == [a, a, a, b, b, b]


def test_slices_equal_the_whole():
    it = order()
    whole = it.positions(17)
    parts = zip(*(it.positions(17, start, start + 12) for start in range(0, 96, 12)), strict=True)
    for part, field in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(np.concatenate(part), field)
    assert [field.dtype for field in whole] == [np.int64, np.int32, np.int32]


def test_order_depends_on_seed_and_epoch_only():
    it = order()
    far = 1000 * it.steps_per_epoch + 3
    np.testing.assert_array_equal(it.positions(far).image_index, order().positions(far).image_index)
    np.testing.assert_array_equal(
        list_of_epoch(it, 1)[:960], list_of_epoch(order(batch_size=64), 1)[:960]
    )  # another batch size splits the same list elsewhere
    assert not np.array_equal(list_of_epoch(it, 0), list_of_epoch(order(seed=6), 0))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(it)).positions(5).image_index, it.positions(5).image_index)
    assert len(pickle.dumps(it)) < 1000


def test_cost_does_not_depend_on_the_step():
    it = order(num_examples=1281167, batch_size=1024, group_size=64)
    assert len(it.positions(300 * 1251 - 1).image_index) == 1024  # would take hours if the cost grew with the step


def test_small_data_sets_are_not_rounded_to_zero():
    it = order(num_examples=200, batch_size=96)
    assert it.steps_per_epoch == 2
    assert order(num_examples=256, batch_size=64).steps_per_epoch == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(batch_size=100), r"train\.batch_size=100 is not a multiple of .*8 \* 4 = 32"),
        (dict(groups_per_block=2), r"augment\.groups_per_block=2 is less than data\.repeats=3"),
        (dict(num_examples=300, batch_size=288), r"train\.batch_size=288 exceeds the 256 positions.*300 images"),
        (dict(num_examples=90), r"train\.batch_size=96 exceeds the 90 positions"),
        (dict(repeats=0), r"data\.repeats=0"),
        (dict(seed=-1), r"seed=-1"),
    ],
)
def test_invalid_orders_raise(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        order(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("batch", "repeats", "largest", "sizes"),
    [
        (1024, 3, 256, (256, 4)), (1024, 3, 64, (64, 4)), (512, 3, 32, (32, 4)), (768, 3, 64, (64, 4)), (4096, 1, 64, (64, 4)),
        (96, 3, 256, (24, 4)), (64, 3, 256, (16, 4)), (512, 3, 256, (128, 4)), (2048, 3, 256, (256, 4)), (1000, 3, 64, (50, 4)),
        (6, 3, 256, (2, 3)), (50, 1, 256, (50, 1)), (30, 5, 256, (6, 5)), (1022, 3, 256, (146, 7)), (4, 2, 256, (2, 2)),
    ],
)  # fmt: skip
def test_mixing_sizes_follow_from_the_batch(batch, repeats, largest, sizes):
    assert mixing_sizes(batch, repeats, largest) == sizes
    group, groups = sizes
    order(num_examples=10_000, batch_size=batch, repeats=repeats, group_size=group, groups_per_block=groups)
    assert mixing_sizes(batch, repeats, largest, group_size=group) == sizes
    assert mixing_sizes(batch, repeats, largest, groups_per_block=groups) == sizes


def test_given_mixing_sizes_are_kept():
    assert mixing_sizes(1024, 3, 64, group_size=256) == (256, 4)
    assert mixing_sizes(1024, 3, 64, groups_per_block=8) == (64, 8)
    assert mixing_sizes(1024, 3, 64, group_size=48, groups_per_block=5) == (48, 5)  # TrainOrder rejects them


@pytest.mark.parametrize("batch", [7, 1, 35])
def test_odd_batch_works_without_mixing(batch):
    with pytest.raises(ValueError, match=rf"^train\.batch_size={batch} with data\.repeats=1 .*multiple of 8$") as error:
        mixing_sizes(batch, 1, 256)
    assert "\n" not in str(error.value)
    group, groups = mixing_sizes(batch, 1, 256, mixes=False)
    order(batch_size=batch, repeats=1, group_size=group, groups_per_block=groups)


@pytest.mark.parametrize(
    ("batch", "repeats", "given", "message"),
    [
        (64, 3, dict(groups_per_block=5), r"groups_per_block=5 .*even number of rows, at least 3 groups per block: .* 10$"),
        (64, 3, dict(group_size=48), r"group_size=48 cannot .*groups of 48 rows, at least 3 groups per block: .*of 192$"),
        (70, 6, dict(group_size=8), r"train\.batch_size=70 with data\.repeats=6.* multiple of 48$"),
        (4, 3, {}, r"train\.batch_size=4 with data\.repeats=3 cannot .* multiple of 8$"),
        (2, 3, dict(mixes=False), r"cannot be divided into mixing groups, at least 3 groups per block: .* multiple of 4$"),
        (65, 1, dict(groups_per_block=6), r"even number of rows, at least 1 group per block: .* multiple of 12$"),
    ],
)  # fmt: skip
def test_indivisible_batches_raise(batch, repeats, given, message):
    with pytest.raises(ValueError, match=message) as error:
        mixing_sizes(batch, repeats, 256, **given)
    assert "\n" not in str(error.value)
    multiple = int(message.removesuffix("$").split()[-1])
    group, groups = mixing_sizes(multiple, repeats, 256, **given)  # the suggestion works
    order(batch_size=multiple, repeats=repeats, group_size=group, groups_per_block=groups)


def test_mixing_with_max_group_size_1_raises():
    with pytest.raises(ValueError, match=r"^augment\.max_group_size=1: .*set 2 or more"):
        mixing_sizes(1024, 3, 1)
    assert mixing_sizes(1024, 3, 1, mixes=False) == (1, 4)


@pytest.mark.parametrize(
    ("batch", "largest", "groups", "better"),
    [
        (1006, 256, None, 1000), (1004, 256, None, 1000), (1002, 256, None, 1000), (1016, 64, None, 1008),
        (1060, 256, 5, 1060), (530, 256, 5, 530), (1012, 256, 2, 1008), (100, 256, None, 100), (1024, 16, None, 1024),
    ],
)  # fmt: skip
def test_better_batch_size_for_tiny_groups(batch, largest, groups, better):
    group, _ = mixing_sizes(batch, 1 if groups else 3, largest, groups_per_block=groups)
    assert batch_of_larger_groups(batch, 1 if groups else 3, largest, groups) == (None if better == batch else better)
    if better != batch:
        larger, _ = mixing_sizes(better, 1 if groups else 3, largest, groups_per_block=groups)
        assert larger > 4 * group


def test_invalid_positions_raise():
    with pytest.raises(ValueError, match="step -1"):
        order().positions(-1)
    with pytest.raises(ValueError, match="0 to 97"):
        order().positions(0, 0, 97)
