import jax
import numpy as np
import pytest

from deit_jax.config import default_config
from deit_jax.data.registry import open_source
from deit_jax.data.sources import DataError, Example
from deit_jax.evaluation.protocol import protocol_line, protocol_of
from deit_jax.evaluation.run import Evaluator
from deit_jax.models import create_model
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.sharding import replicated
from tests.tiny import STUDENT, tiny_config


@pytest.fixture(scope="module")
def model_and_variables():
    model = create_model("deit_tiny_distilled_patch16_224", 10, 28, **STUDENT)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 28, 28, 3), np.float32))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 40), (4, 40), (1, 90)])
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


class SeveralLabels:
    """The embedded test images; image i is right as its own class and as i's last digit, every third has no label."""

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


def test_a_further_set_gives_the_same_on_any_number_of_devices(model_and_variables):
    model, variables = model_and_variables
    found = []
    for devices in (1, 4):
        mesh = make_mesh(jax.devices()[:devices])
        config = tiny_config()
        source = open_source(config.data, "eval")
        evaluator = Evaluator(config, source, mesh, image_size=28)
        weights = {"raw": jax.device_put(variables, replicated(mesh)), "ema": None}
        found.append(evaluator.further(model, weights, SeveralLabels(source)))
    assert found[0] == found[1]
    assert found[0]["images"] == 33 and set(found[0]["scores"]) == {"raw"}


def test_of_several_processes_none_is_left_waiting_for_one_that_cannot_read(model_and_variables):
    evaluator = Evaluator(tiny_config(), open_source(tiny_config().data, "eval"), make_mesh(), image_size=28)
    source, faults = SeveralLabels(open_source(tiny_config().data, "eval")), []

    def batches():
        yield from list(evaluator._batches(source))[:1]
        raise DataError("gone")

    told = list(evaluator._in_step(batches(), source, faults))
    assert [int(batch["mask"].sum()) for batch in told] == [40, 0] and str(faults[0]) == "gone"
    assert {name: part.shape for name, part in told[0].items()} == {name: part.shape for name, part in told[1].items()}


def test_the_protocol_tells_sizes_and_normalisation():
    config = default_config()
    found = protocol_of(config, 384)
    assert (found["resize"], found["crop"], found["crop_ratio"]) == (438, 384, 0.875)
    assert protocol_line(found).startswith("deit: shorter side to 438, centre 384 (bicubic, antialiased); mean 0.485,")
    config.evaluation.protocol = "timm"
    assert protocol_of(config, 224)["resize"] == 248
    config.evaluation.protocol = "mmpretrain"
    assert protocol_of(config, 384)["resize"] == [384, 384]
    assert "whole image to 384 x 384" in protocol_line(protocol_of(config, 384))
