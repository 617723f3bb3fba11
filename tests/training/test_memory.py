"""Host memory does not grow with the number of steps."""

import gc
import tracemalloc

import jax
import numpy as np
import pytest

from deit_jax.training import loop
from deit_jax.training.late_metrics import LateMetrics
from tests.fewer_devices import fewer_devices
from tests.tiny import STUDENT, tiny_config

STEPS = 3000


@pytest.mark.long
def test_thousands_of_steps_leave_nothing_behind(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 255, (64, 28, 28), dtype=np.uint8)
    few = {"test_images": images[:8], "test_labels": np.arange(8)}
    names = [str(number) for number in range(10)]
    np.savez(tmp_path / "data.npz", train_images=images, train_labels=np.arange(64) % 10, class_names=names, **few)
    config = tiny_config(
        distillation__kind="none", teacher__weights="", data__source="npz", data__path=str(tmp_path / "data.npz"),
        data__repeats=1, data__max_eval_images=8, evaluation__batch_size=8, evaluation__every_epochs=0, train__batch_size=8,
        augment__groups_per_block=2, augment__erase_probability=0.0, train__max_steps=STEPS, train__epochs=STEPS,
        checkpoint__every_steps=STEPS,
        log__every_steps=50, log__tensorboard=True, ema__decay=0.0,
    )  # fmt: skip
    with config.unlocked():
        config.model.overrides = STUDENT | {"depth": 1}
    states, note = {}, LateMetrics.note

    def measured(self, step, metrics):
        note(self, step, metrics)
        if step in (600, STEPS - 1):
            gc.collect()
            objects, arrays = len(gc.get_objects()), len(jax.live_arrays())
            states[step] = (tracemalloc.get_traced_memory()[0], objects, arrays)

    monkeypatch.setattr(LateMetrics, "note", measured)
    tracemalloc.start()
    try:
        with fewer_devices():
            loop.train(config, tmp_path / "run")
    finally:
        tracemalloc.stop()
    (bytes_before, objects_before, arrays_before), (bytes_after, objects_after, arrays_after) = states.values()
    steps = STEPS - 1 - 600
    assert (bytes_after - bytes_before) / steps < 100  # as many as are in use differ by some batches
    assert (objects_after - objects_before) / steps < 0.1
    assert arrays_after - arrays_before < 50
