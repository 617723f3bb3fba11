from types import SimpleNamespace

import numpy as np

from deit_jax.data.registry import open_source
from deit_jax.parallel.host_rows import HostRows
from deit_jax.training.loop import pictured
from deit_jax.training.plan import resolve
from deit_jax.training.preparation import step_batches
from tests.tiny import tiny_config


def test_the_pictures_of_the_first_images_are_the_same_where_hosts_share_a_block():
    config = tiny_config()
    source = open_source(config.data, "train")
    plan = resolve(config, num_images=len(source), data_classes=10)

    def logged(rows):
        seen = []
        log = SimpleNamespace(pictures=lambda step, pictures: seen.append((step, pictures)))
        run = SimpleNamespace(
            config=config, plan=plan, train_source=source, program=SimpleNamespace(host_rows=rows), log=log
        )
        batches = list(step_batches(config, source, plan, rows, 0, 2))
        for one, other in zip(pictured(run, iter(batches)), batches, strict=True):
            np.testing.assert_array_equal(one["image"], other["image"])
        return seen

    ((step, whole),) = logged(HostRows(((0, 32),)))
    ((_, shared),) = logged(HostRows(((0, 8),), dealt=False))
    assert step == 0 and len(whole.images) == 16
    np.testing.assert_array_equal(shared.images, whole.images)
    assert shared.captions == whole.captions
