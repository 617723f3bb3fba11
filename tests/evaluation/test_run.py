import jax
import numpy as np
import pytest

from deit_jax.data.registry import open_source
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
    output = model.apply(variables, images.astype(np.float32))
    for head, logits in (("class", output.class_logits), ("fused_logits", output.logits)):
        assert scores[head]["top1"] == pytest.approx(100 * np.mean(np.argmax(logits, -1) == labels))
