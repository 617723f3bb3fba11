import jax
import numpy as np

from deit_jax.data.registry import open_source
from deit_jax.data.sources import Subset
from deit_jax.data.unlabelled import JointSource
from deit_jax.parallel.mesh import make_mesh
from deit_jax.training.announcement import describe
from deit_jax.training.plan import plan_of, resolve
from deit_jax.training.program import build_program
from tests.tiny import tiny_config


def test_both_kinds_of_images_are_counted():
    config = tiny_config(unlabelled__source="fashion_mnist_10k", unlabelled__share=0.25, train__max_steps=500)
    labelled = open_source(config.data, "eval")
    source = JointSource(labelled, open_source(config.data, "train"))
    plan = plan_of(config, source)
    facts = describe(config, plan, build_program(config, plan, make_mesh(jax.devices()[:1])), source, labelled, None)
    assert "90 training images, 90 for evaluation" in facts["data"]
    assert facts["unlabelled"] == (
        "fashion_mnist_10k: 10,000 images, which only the teacher labels, 8 of 32 rows of a batch; each is seen 0.4 times, a "
        "labelled image 133 times (epochs count labelled images)"
    )
    assert facts["length"] == (
        "500 steps of 32 images, 3 per epoch (166.7 of 300 epochs); 18 of an epoch's 90 images are skipped, "
        "different ones each time (docs/glossary.md)"
    )


def test_describe_lists_the_notes_of_both_sources_once():
    config = tiny_config(distillation__kind="none", teacher__weights="")
    plan = resolve(config, num_images=10_000, data_classes=10)
    program = build_program(config, plan, make_mesh(jax.devices()[:1]))
    images = open_source(config.data, "eval")
    train = Subset(images, np.arange(9), ["skipped in a: 2 files: 2 .txt"])
    held_out = Subset(train, np.arange(3), ["1 of 2 classes have one image"])
    facts = describe(config, plan, program, train, held_out, None)
    assert facts["data notes"] == ["skipped in a: 2 files: 2 .txt", "1 of 2 classes have one image"]
    assert facts["length"].startswith("4 steps of 32 images, 312 per epoch") and "skipped" not in facts["length"]
    fewer = resolve(config, num_images=500, data_classes=10)
    assert "8 per epoch" in (length := describe(config, fewer, program, train, held_out, None)["length"])
    assert "; 244 of an epoch's 500 images are skipped" in length
    assert "data notes" not in describe(config, plan, program, images, images, None)
    assert facts["attention"] == "xla: no fused kernel computes on cpus"
    assert facts["mixing"] == "mixup 0.8, cutmix 1 in groups of 4, 4 per block, label smoothing 0.1"
    config.augment.mixup_alpha = config.augment.cutmix_alpha = 0.0
    facts = describe(config, plan, program, train, held_out, None)
    assert facts["mixing"] == "off, label smoothing 0.1"
