import os
import threading
import weakref

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from deit_jax.config import default_config
from deit_jax.data import folder, shared_memory
from deit_jax.data.bad_images import BadImages
from deit_jax.data.registry import open_source
from deit_jax.data.sources import ArraySource, DataError, Example, Subset
from deit_jax.evaluation.run import Evaluator, open_extra_sets, protocol_line, protocol_of
from deit_jax.models import create_model
from deit_jax.parallel import in_advance
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.sharding import put_batch, replicated
from tests.reliability.small_disk import small_disk
from tests.tiny import STUDENT, tiny_config


@pytest.fixture(scope="module")
def model_and_variables():
    model = create_model("deit_tiny_distilled_patch16_224", 10, 28, **STUDENT)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 28, 28, 3), np.float32))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 40), (4, 40), (1, 90), (8, 50)])
def test_scores_do_not_depend_on_devices_or_batch_size(model_and_variables, devices, batch_size):
    model, variables = model_and_variables
    config = tiny_config(evaluation__batch_size=batch_size)
    source = open_source(config.data, "eval")
    mesh = make_mesh(jax.devices()[:devices])
    scores = Evaluator(config, source, mesh, image_size=28)(model, jax.device_put(variables, replicated(mesh)))

    images = np.stack([np.repeat(source[i].image[:, :, None], 3, axis=2) for i in range(90)]) / 255
    labels = np.array([source[i].label for i in range(90)])
    images = (images - np.array(config.augment.mean)) / np.array(config.augment.std)
    output = jax.jit(model.apply)(variables, images.astype(np.float32))
    for head, logits in (("class", output.class_logits), ("fused_logits", output.logits)):
        assert scores[head]["top1"] == pytest.approx(100 * np.mean(np.argmax(logits, -1) == labels))


class Counted(ArraySource):
    """Random images that count reads; those in `broken` are unreadable."""

    def __init__(self, count=90, broken=()):
        rng = np.random.default_rng(0)
        names = tuple(f"class {k}" for k in range(10))
        super().__init__(rng.integers(0, 255, (count, 28, 28), np.uint8), rng.integers(0, 10, count), names)
        self.reads, self.broken = 0, set(broken)

    def __getitem__(self, index):
        self.reads += 1
        example = super().__getitem__(index)
        return example._replace(image=b"not an image") if index in self.broken else example


def evaluator_of(source, **changes):
    return Evaluator(tiny_config(**changes), source, make_mesh(jax.devices()[:1]), image_size=28, keep_images=True)


@pytest.fixture(scope="module")
def two_weights(model_and_variables):
    model, variables = model_and_variables
    return model, {"raw": variables, "ema": jax.tree.map(lambda leaf: leaf * 1.5, variables), "none": None}


def test_several_weights_in_one_pass_and_images_in_memory(two_weights):
    model, weights = two_weights
    source = Counted()
    evaluator = evaluator_of(source)
    scores = evaluator.weights(model, weights)
    assert source.reads == 90 and list(scores) == ["raw", "ema"] and scores["raw"] != scores["ema"]
    assert evaluator.weights(model, weights) == scores and source.reads == 90  # from memory
    assert evaluator(model, weights["ema"]) == scores["ema"]

    reading = evaluator_of(source, evaluation__memory_gib=89 * 28 * 28 * 3 / 2**30)  # one image too few
    assert reading.weights(model, weights) == reading.weights(model, weights) == scores and source.reads == 270


def test_unreadable_images_are_counted(two_weights, capsys):
    model, weights = two_weights
    broken = (3, 4, 89)  # two in one chunk
    with pytest.raises(DataError, match="image 3 of the arrays"):
        evaluator_of(Counted(broken=broken)).weights(model, weights)
    evaluator = evaluator_of(Counted(broken=broken), data__on_bad_image="replace")
    scores = evaluator.weights(model, weights)
    assert evaluator.unreadable == 3 and evaluator.weights(model, weights) == scores and evaluator.unreadable == 3
    output = capsys.readouterr().out
    assert output.count("left out of the scores: image") == 3

    whole = Counted()
    sound = Subset(whole, np.array([i for i in range(90) if i not in broken]))
    expected = evaluator_of(sound).weights(model, weights)
    for name, by_head in expected.items():
        for head, values in by_head.items():
            assert scores[name][head] == pytest.approx(values, rel=1e-5)
    extra = evaluator.score_extra(model, weights, Counted(broken=broken))
    assert (extra["images"], extra["unreadable"]) == (87, 3)
    assert extra["scores"]["raw"] == scores["raw"]


def test_full_shared_memory_falls_back_to_threads(two_weights, tmp_path, monkeypatch, capsys):
    model, weights = two_weights
    with small_disk(tmp_path / "shm", megabytes=0.1) as shm:
        monkeypatch.setattr(shared_memory, "FOLDER", str(shm))
        evaluator = evaluator_of(Counted(), data__num_workers=1)
        assert evaluator.weights(model, weights) == evaluator_of(Counted()).weights(model, weights)
    assert "evaluation reads in threads: data.num_workers=1 needs" in " ".join(capsys.readouterr().out.split())


def test_few_batches_are_in_memory_at_a_time(two_weights, monkeypatch):
    model, weights = two_weights
    alive, most, lock = set(), [0], threading.Lock()

    def counted(*arguments):
        batch = put_batch(*arguments)
        with lock:
            alive.add(id(batch["mask"]))
            most[0] = max(most[0], len(alive))
        weakref.finalize(batch["mask"], alive.discard, id(batch["mask"]))
        return batch

    monkeypatch.setattr(in_advance, "put_batch", counted)
    evaluator_of(Counted(), evaluation__batch_size=2, evaluation__memory_gib=0.0, data__batches_ahead=1).weights(
        model, weights
    )
    # One in advance, one just sent or received each, and the unfinished ones; 45 in all.
    assert most[0] <= 1 + 2 + in_advance.UNFINISHED_STEPS


class SeveralLabels:
    """The embedded test images; image i has its own class and the last digit of i as labels, every third has none."""

    multi_label = True

    def __init__(self, source):
        self._source = source
        self.class_names = source.class_names

    def __len__(self):
        return 50

    def __getitem__(self, index):
        image, label = self._source[index]
        return Example(image, () if index % 3 == 0 else (label, index % 10))

    def describe(self, index):
        return self._source.describe(index)


def test_extra_sets_do_not_depend_on_devices(model_and_variables):
    model, variables = model_and_variables
    found = []
    for devices in (1, 4):
        mesh = make_mesh(jax.devices()[:devices])
        config = tiny_config()
        source = open_source(config.data, "eval")
        evaluator = Evaluator(config, source, mesh, image_size=28)
        weights = {"raw": jax.device_put(variables, replicated(mesh)), "ema": None}
        found.append(evaluator.score_extra(model, weights, SeveralLabels(source)))
    assert found[0] == found[1]
    assert found[0]["images"] == 33 and set(found[0]["scores"]) == {"raw"}


def test_unreadable_image_does_not_block_other_processes(model_and_variables):
    evaluator = Evaluator(tiny_config(), open_source(tiny_config().data, "eval"), make_mesh(), image_size=28)
    source, faults = SeveralLabels(open_source(tiny_config().data, "eval")), []

    def batches():
        yield from list(evaluator._batches(source, BadImages()))[:1]
        raise DataError("gone")

    yielded = list(evaluator._synchronized(batches(), source, faults))
    assert [int(batch["mask"].sum()) for batch in yielded] == [40, 0] and str(faults[0]) == "gone"
    assert {name: part.shape for name, part in yielded[0].items()} == {
        name: part.shape for name, part in yielded[1].items()
    }


def test_protocol():
    config = default_config()
    found = protocol_of(config, 384)
    assert (found["resize"], found["crop"], found["crop_ratio"]) == (438, 384, 0.875)
    assert protocol_line(found).startswith("deit: shorter side to 438, centre 384 (bicubic, antialiased); mean 0.485,")
    config.evaluation.protocol = "timm"
    assert protocol_of(config, 224)["resize"] == 248
    config.evaluation.protocol = "mmpretrain"
    assert protocol_of(config, 384)["resize"] == [384, 384]
    assert "whole image to 384 x 384" in protocol_line(protocol_of(config, 384))


def test_index_argument_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "SMALLEST_INDEXED", 1)
    for name in "ab":
        (tmp_path / "set" / "val" / name).mkdir(parents=True)
        Image.new("RGB", (3, 2)).save(tmp_path / "set" / "val" / name / "0.png")
    for path, _, _ in os.walk(tmp_path / "set"):
        os.utime(path, (1e9, 1e9))  # a folder that has just changed is not indexed
    config = tiny_config(data__index=str(tmp_path / "configured"))
    entry = {"source": "folder", "name": "", "path": str(tmp_path / "set"), "split": "validation", "labels": ""}
    config.evaluation.extra = ConfigDict({"extra": entry})
    for index, place in ((None, "configured"), (str(tmp_path / "shared"), "shared")):
        sources = open_extra_sets(config, ("a", "b"), strict=True, index=index)
        assert len(sources["extra"]) == 2 and len(list((tmp_path / place).iterdir())) == 1
