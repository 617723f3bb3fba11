"""The section `features` of a configuration, and what it refuses."""

import pytest

from deit_jax.config import ConfigError, asks_teacher, needs_logits, needs_teacher
from deit_jax.config_check import validate, without_effect
from deit_jax.config_features import Giver, Pair, described_features, resolved_pairs
from deit_jax.modes.record import record
from tests.tiny import tiny_config, tiny_teacher_config

ON = dict(features__pairs=("patch_1:s1", "class_2:final"), features__cosine=0.5)


def test_a_teacher_is_needed_for_features_alone():
    config = tiny_config(**ON, distillation__kind="labels")
    validate(config)
    assert needs_teacher(config) and asks_teacher(config) and not needs_logits(config)
    assert described_features(config) == "patch_1 <- s1, class_2 <- final; cosine 0.5"
    assert described_features(tiny_config()) == ""
    config.teacher.weights = ""
    with pytest.raises(ConfigError, match=r"^config.features.pairs needs a teacher: set config.teacher.weights"):
        validate(config)
    useless = dict(without_effect(tiny_config(**ON, distillation__kind="labels", teacher__classes=tuple(range(10)))))
    assert "only the teacher's features are used" in useless["teacher.classes"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features__pairs": ("patch_1",)}, "'patch_1' is not STUDENT:TEACHER, e.g. patch_4:s2"),
        ({"features__pairs": ("patch_1:s1", "patch_1:s1")}, "has patch_1:s1 twice"),
        ({"features__pairs": ()}, "config.features.cosine=0.5, but config.features.pairs is empty"),
        ({"features__cosine": 0.0}, "every weight is 0: set config.features.mse or config.features.cosine or"),
        ({"features__mse": -1.0}, "config.features.mse=-1.0 must be at least 0"),
        ({"features__pairs": ("patch_3:s1",)}, "student deit_tiny_distilled_patch16_224 has no feature 'patch_3'; it has "
         "patch_1 to patch_2, class_1 to class_2, distillation_1 to distillation_2, final"),
        ({"features__pairs": ("class_1:s7",)}, "the teacher regnety_002 has no feature 's7'; it has stem, s1 to s2, final"),
        ({"features__pairs": ("class_1:block_1",)}, "the teacher regnety_002 has no feature 'block_1'"),
        ({"model__name": "deit_tiny_patch16_224", "features__pairs": ("distillation_1:s1",)}, "has no feature 'distillation_1'"),
        ({"teacher__name": "regnety_002,regnety_004", "teacher__weights": "random,random"}, "several teachers"),
        ({"teacher__weights": "teachers/net.jax"}, "the program teachers/net.jax gives only logits, no features"),
        ({"teacher__weights": "", "teacher__answers": "answers"}, "does not work with config.teacher.answers"),
        ({"image_size": 30}, "config.model: image_size=30 is not a multiple of patch_size=14"),
        ({"teacher__record": "answers"}, "does not work with config.teacher.record"),
        ({"model__patch_keep_rate": 0.25}, "patch_1 is a map of all patch tokens, and config.model."
         "patch_keep_rate=0.25 drops some"),
    ],
)  # fmt: skip
def test_a_contradiction_is_refused_in_one_line(changes, message):
    with pytest.raises(ConfigError) as error:
        validate(tiny_config(**ON | changes))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_teacher_that_is_trained_first_is_checked_before():
    config = tiny_config(**ON | {"features__pairs": ("patch_1:s3",)}, teacher__weights="")
    config.teacher.recipe = tiny_teacher_config()
    with pytest.raises(ConfigError, match="the teacher regnety_002 has no feature 's3'"):
        validate(config)
    config.features.pairs = ("patch_1:s2",)
    validate(config)


def test_answers_of_a_teacher_with_features_are_not_recorded(tmp_path):
    for teacher in (None, "my_teachers:network"):
        with pytest.raises(ConfigError, match=r"config\.features\.pairs does not work with --mode=record, because"):
            record(tiny_config(**ON), tmp_path / "answers", teacher=teacher)
    assert not (tmp_path / "answers").exists()


def test_a_block_of_the_teacher_means_its_tokens_of_the_students_kind():
    student = Giver("student", "s", ("patch_1", "class_1", "distillation_1"))
    plain = Giver("teacher", "t", ("patch_1", "patch_2", "class_1", "class_2", "final"))
    pairs = [Pair(f"{token}_1", "block_2") for token in ("patch", "class", "distillation")]
    assert [pair.teacher for pair in resolved_pairs(pairs, student, plain)] == ["patch_2", "class_2", "class_2"]
    distilled = plain._replace(names=(*plain.names, "distillation_2"))
    assert resolved_pairs(pairs, student, distilled)[2].teacher == "distillation_2"
    with pytest.raises(ConfigError, match="the teacher t has no feature 'block_3'"):
        resolved_pairs([Pair("patch_1", "block_3")], student, plain)
    with pytest.raises(ConfigError, match=r"the teacher t gives no features \(docs/extending.md\)"):
        resolved_pairs(pairs, student, plain._replace(names=()))
