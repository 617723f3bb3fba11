import threading
from types import SimpleNamespace

import numpy as np
import pytest

from deit_jax.data.registry import open_source
from deit_jax.parallel.host_rows import HostRows
from deit_jax.training.first_images import first_images, log_first_images, read_first_rows
from deit_jax.training.plan import resolve
from deit_jax.training.preparation import step_batches
from tests.tiny import tiny_config


class Counting:
    """Counts the images that are read."""

    def __init__(self, source):
        self.source, self.class_names, self.reads = source, source.class_names, 0

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        self.reads += 1
        return self.source[index]


def reader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")]


@pytest.mark.parametrize(
    ("changes", "rows", "count"),
    [
        ({}, 16, 16),
        ({"augment__max_group_size": 8}, 10, 16),
        ({"augment__max_group_size": 8}, 3, 8),
        ({"augment__group_size": 2, "augment__groups_per_block": 4}, 9, 10),  # more than a block
        ({"augment__mix_probability": 0.0, "augment__max_group_size": 8}, 3, 3),
        ({}, 100, 32),
    ],
)
def test_read_first_rows_equals_the_batch_and_reads_no_other_image(changes, rows, count):
    config = tiny_config(**changes)
    source = Counting(open_source(config.data, "train"))
    plan = resolve(config, num_images=len(source), data_classes=10)
    (whole,) = step_batches(config, source, plan, HostRows(((0, 32),)), 0, 1)
    source.reads = 0
    found = read_first_rows(config, plan, source, rows)
    assert len(found["label"]) == count and source.reads <= count
    for thread in reader_threads():  # they end a moment after the close
        thread.join(timeout=10)
    assert not reader_threads()
    for name, values in found.items():
        np.testing.assert_array_equal(values, whole[name][:count])


def test_first_images_use_recorded_mixing_groups():
    config = tiny_config()
    own, recorded = first_images(config, 8), first_images(config, 8, mixing=(8, 4))
    assert (own.augment.group_size, recorded.augment.group_size) == (4, 8)
    began = first_images(tiny_config(augment__max_group_size=8), 8)
    np.testing.assert_array_equal(recorded.images, began.images)
    np.testing.assert_array_equal(recorded.labels, began.labels)
    assert not np.array_equal(recorded.images, own.images)


def test_first_images_are_of_both_kinds():
    config = tiny_config(unlabelled__source="fashion_mnist_10k", unlabelled__share=0.25, augment__label_smoothing=0.1)
    seen = first_images(config, 8)
    assert (
        seen.labels.tolist().count(-1) == 4 and len(seen.labels) == 16
    )  # groups of 2 rows, every fourth is unlabelled
    np.testing.assert_array_equal(seen.shown(8), [0, 1, 2, 3, 6, 7, 14, 15])
    assert [seen.class_of(row) == "unlabelled" for row in (0, 5, 6, 15)] == [False, False, True, True]
    _, captions = seen.as_trained_on(8)
    assert [caption == "unlabelled" for caption in captions] == [False] * 4 + [True] * 4


def test_logged_first_images_do_not_depend_on_the_hosts():
    config = tiny_config()
    source = open_source(config.data, "train")
    plan = resolve(config, num_images=len(source), data_classes=10)

    def logged(rows):
        seen = []
        log = SimpleNamespace(pictures=lambda step, pictures: seen.append((step, pictures)))
        batch, other = (next(step_batches(config, source, plan, rows, 0, 2)) for _ in range(2))
        log_first_images(log, config, plan, source, rows, batch)
        np.testing.assert_array_equal(batch["image"], other["image"])
        return seen

    ((step, whole),) = logged(HostRows(((0, 32),)))
    ((_, shared),) = logged(HostRows(((0, 8),), dealt=False))
    assert step == 0 and len(whole.images) == 16
    np.testing.assert_array_equal(shared.images, whole.images)
    assert shared.captions == whole.captions
