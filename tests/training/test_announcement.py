import jax
import numpy as np

from deit_jax.data.registry import open_source
from deit_jax.data.sources import Subset
from deit_jax.parallel.mesh import make_mesh
from deit_jax.training.announcement import describe
from deit_jax.training.plan import resolve
from deit_jax.training.program import build_program
from tests.tiny import tiny_config


def test_describe_lists_the_notes_of_both_sources_once():
    config = tiny_config(distillation__kind="none", teacher__weights="")
    plan = resolve(config, num_images=10_000, data_classes=10)
    program = build_program(config, plan, make_mesh(jax.devices()[:1]))
    images = open_source(config.data, "eval")
    train = Subset(images, np.arange(9), ["skipped in a: 2 files: 2 .txt"])
    held_out = Subset(train, np.arange(3), ["1 of 2 classes have one image"])
    facts = describe(config, plan, program, train, held_out, None)
    assert facts["data notes"] == ["skipped in a: 2 files: 2 .txt", "1 of 2 classes have one image"]
    assert "data notes" not in describe(config, plan, program, images, images, None)
    assert facts["attention"] == "xla: no fused kernel computes on cpus"
