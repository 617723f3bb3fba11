import os
import threading

import numpy as np
import pytest

from deit_jax.data import assembling, shared_memory
from deit_jax.data.assembling import assemble, default_threads, default_workers
from deit_jax.data.decoding import CenterCrop
from deit_jax.data.loading import eval_batches, train_batches
from deit_jax.data.sources import Example
from tests.data.test_loading import CROP, ORDER, SOURCE, assert_same, run


def on(monkeypatch, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)


@pytest.mark.parametrize(
    ("cores", "workers", "threads"), [(1, 0, 1), (16, 0, 16), (17, 2, 9), (112, 7, 16), (208, 13, 16), (250, 16, 16)]
)
def test_auto_uses_all_cores(monkeypatch, cores, workers, threads):
    on(monkeypatch, cores)
    assert (default_workers(), default_threads(workers)) == (workers, threads)


def test_default_threads_follow_the_cores(monkeypatch):
    on(monkeypatch, 6)
    assert [default_threads(workers) for workers in (0, 1, 2, 4, 9)] == [6, 6, 3, 2, 1]
    on(monkeypatch, 200)
    assert default_threads(0) == 16 and default_threads(50) == 4


class Files:
    """The images of `SOURCE` as files."""

    class_names = SOURCE.class_names

    def __len__(self):
        return len(SOURCE)

    def __getitem__(self, index):
        example = SOURCE[index]
        pixels = example.image
        return Example(b"P6 %d %d 255 " % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes(), example.label)

    def describe(self, index):
        return f"file {index}"


class Locked(Files):
    def __init__(self):
        self.lock = threading.Lock()


def opened(monkeypatch, source, **options):
    """Returns the numbers of workers that were opened, and the batches."""
    on(monkeypatch, 40)
    workers, from_workers, from_threads = [], assembling._from_workers, assembling._from_threads
    monkeypatch.setattr(assembling, "_from_workers", lambda *args: workers.append(args[5]) or from_workers(*args))
    monkeypatch.setattr(assembling, "_from_threads", lambda *args: workers.append(0) or from_threads(*args))
    options = {"start_step": 0, "stop_step": 2, "num_threads": 1, "num_workers": "auto"} | options
    return workers, train_batches(source, ORDER, CROP, **options)


def test_auto_opens_processes_for_files_and_threads_for_arrays(monkeypatch):
    assert opened(monkeypatch, Files())[0] == [3]
    assert opened(monkeypatch, SOURCE)[0] == [0]
    assert opened(monkeypatch, Files(), num_threads=0)[0] == [0]


def test_auto_reads_in_threads_what_does_not_pickle(monkeypatch, capsys):
    workers, batches = opened(monkeypatch, Locked())
    assert workers == [0]
    assert "data.num_workers=auto reads in 16 threads: the images' source does not pickle (cannot pickle" in " ".join(
        capsys.readouterr().out.split()
    )
    assert_same(list(batches), run(stop=2))


def test_auto_reads_in_threads_without_shared_memory(monkeypatch, capsys):
    monkeypatch.setattr(shared_memory, "_free", lambda: 1000)
    workers, _ = opened(monkeypatch, Files())
    assert workers == [3, 0]
    assert "needs" in capsys.readouterr().out


def test_a_batch_is_filled_by_several_threads_in_place(monkeypatch):
    """Each batch is one array from the beginning."""
    made = []

    def empty():
        made.append({"image": np.zeros((8, 2), np.uint8)})
        return made[-1]

    class Read:
        source = SOURCE

        def __call__(self, index, batch=None):
            batch["image"][index % 4 * 2 : index % 4 * 2 + 2] = index
            return {"bad": "one\0two" if index == 5 else ""}

    batches = list(assemble(Read(), steps=3, chunks=4, empty=empty, num_threads=3, num_workers=0, prefetch_batches=2))
    assert len(made) == 3 and sorted(map(id, (each["image"] for each in made))) == sorted(
        id(batch["image"]) for batch in batches
    )
    for number, batch in enumerate(batches):
        np.testing.assert_array_equal(batch["image"][:, 1], np.repeat(np.arange(4) + 4 * number, 2))


def test_batches_in_advance_are_bounded():
    """Memory is that of the batches ahead, and of the one in use."""

    class Counted(dict):
        alive = 0

        def __init__(self):
            super().__init__(image=np.zeros((4, 1), np.uint8))
            Counted.alive += 1

        def __del__(self):
            Counted.alive -= 1

    class Read:
        source = SOURCE

        def __call__(self, index, batch=None):
            return {"bad": ""}

    most = 0
    for batch in assemble(Read(), steps=40, chunks=2, empty=Counted, num_threads=2, num_workers=0, prefetch_batches=3):
        most = max(most, Counted.alive)
        del batch
    assert most <= 3 + 2


def test_evaluation_fills_labels_and_masks_in_place():
    for batch in eval_batches(Files(), CenterCrop(14, 0.5), 150, num_threads=3):
        rows = np.flatnonzero(batch["mask"])
        for row in rows[::29]:
            pixels = SOURCE[int(batch["label"][row])].image
            np.testing.assert_array_equal(batch["image"][row], CenterCrop(14, 0.5)(pixels))
    assert len(rows) == 20 and not batch["image"][20:].any()
