"""Answers are refused for a run that would see other images, by the name of the field; what is the student's alone is free."""

import dataclasses

import jax
import numpy as np
import pytest

from deit_jax.answers.files import AnswersError, Facts
from deit_jax.answers.fingerprint import check_fingerprint, fingerprint, library_versions, other_versions
from deit_jax.answers.kinds import DECISIONS, AnswerKind
from deit_jax.data.identity import Images
from deit_jax.data.sources import ArraySource
from deit_jax.parallel.mesh import make_mesh
from deit_jax.training.plan import resolve
from tests.tiny import tiny_config

NAMES = ("a", "b")
PIXELS = np.random.default_rng(0).integers(0, 255, (96, 28, 28), dtype=np.uint8)


def depends_on(*, pixels=PIXELS, names=NAMES, teacher=None, platform="cpu", **changes):
    config = tiny_config(**{"augment__rand_augment": "rand-m9", **changes})
    source = ArraySource(pixels, np.arange(len(pixels)) % 2, names)
    plan = resolve(config, num_images=len(source), data_classes=2, platform=platform)
    sizes = {"image_size": plan.image_size, "compute_dtype": plan.compute_dtype}
    mesh = make_mesh(jax.devices()[:1])
    return fingerprint(config, Images.of(source), names, plan.order, mesh, **sizes, teacher=teacher)


def facts(**changes):
    return Facts(AnswerKind(DECISIONS, 2), 32, 9, 3, "", depends_on(teacher={"weights": "x"}, **changes), {})


OTHER = PIXELS.copy()
OTHER[5, 3, 3] ^= 1


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"image_size": 42}, "image_size"),
        ({"pixels": PIXELS[:80]}, "data.digest"),
        ({"pixels": OTHER}, "data.digest"),
        ({"names": ("a", "c")}, "data.class_names"),
        ({"data__repeats": 2}, "data.repeats"),
        ({"data__train_crop": "center"}, "data.crop_padding"),
        ({"data__crop_padding": 3}, "data.crop_padding"),
        ({"augment__mixup_alpha": 0.5}, "augment.mixup_alpha"),
        ({"augment__mix_mode": "elem"}, "augment.mix_mode"),
        ({"augment__group_size": 2}, "augment.group_size"),
        ({"augment__erase_probability": 0.1}, "augment.erase_probability"),
        ({"augment__rand_augment": "rand-m9-inc1"}, "augment.rand_augment"),
        ({"augment__plan": "chunked"}, "augment.plan"),
        ({"augment__mean": (0.5, 0.5, 0.5)}, "augment.mean"),
        ({"platform": "tpu"}, "compute_dtype"),
        ({"train__batch_size": 16}, "steps_per_epoch"),
        ({"teacher": {"weights": "y"}}, "teacher.weights"),
    ],
)
def test_what_the_answers_depend_on_is_refused_by_name(changes, name):
    now = depends_on(**{"teacher": {"weights": "x"}, **changes})
    with pytest.raises(AnswersError) as refused:
        check_fingerprint(facts(), now, "it", then="do that")
    line = str(refused.value)
    assert line.startswith("it does not fit this run: ") and "\n" not in line and line.endswith("; do that")
    assert f" {name}: the answers have " in line


@pytest.mark.parametrize(
    "changes",
    [
        {"model__drop_path_rate": 0.0},
        {"model__name": "deit_small_distilled_patch16_224"},
        {"optimizer__weight_decay": 0.5},
        {"schedule__base_learning_rate": 1e-4},
        {"ema__decay": 0.0},
        {"train__epochs": 7},
        {"train__max_steps": 2},
        {"train__accumulation_steps": 2},
        {"train__clip_norm": 1.0},
        {"evaluation__every_epochs": 3},
        {"distillation__alpha": 0.1},
        {"augment__label_smoothing": 0.0},
        {"data__num_threads": 3},
        {"augment__group_size": 4},  # which it was
    ],
)
def test_what_concerns_the_student_alone_is_free(changes):
    check_fingerprint(facts(), depends_on(**changes), "it", then="")


def test_the_augmentation_plan_counts_only_where_operations_are_drawn():
    found = [depends_on(augment__plan=plan)["augment"]["plan"] for plan in ("auto", "chunked")]
    assert found == ["sequential", "chunked"]


def test_other_versions_of_libraries_are_a_warning():
    here = library_versions()
    assert {"jax", "pillow", "numpy"} < set(here)
    same = dataclasses.replace(facts(), versions=here)
    assert other_versions(same) is None
    line = other_versions(dataclasses.replace(same, versions=here | {"pillow": "1.0"}))
    assert f"pillow 1.0, here {here['pillow']}" in line
