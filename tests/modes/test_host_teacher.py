"""A teacher of another framework by the recorder, and a training from what it said."""

import json
import re

import numpy as np
import pytest

from deit_jax.answers.files import AnswersError, AnswersFolder
from deit_jax.config import ConfigError
from deit_jax.data.registry import open_source
from deit_jax.modes.record import record
from deit_jax.modes.report import report
from deit_jax.modes.train import train
from tests.end_to_end.commands import TINY, refused
from tests.html_pages import Page
from tests.tiny import tiny_config

# Ten logits of what a convnet might see: the mean of each channel, as an own teacher with its own normalisation and size.
CODE = """
import numpy as np

seen = []
NOISE = 0.0

def teach(images):
    seen.append(images)
    means = images.mean((1, 2))
    logits = np.concatenate([means, -means, means**2, means[:, :1] * means[:, 1:2]], 1)
    return logits * (1 + NOISE)

teach.mean = teach.std = (0.5, 0.5, 0.5)
teach.image_size = 14
"""


@pytest.fixture
def config():
    return tiny_config(teacher__weights="", train__max_steps=3, distillation__kind="soft")


CLASS_NAMES = open_source(tiny_config().data, "train").class_names


def host_answers(folder):
    facts = folder.facts()
    return folder.read(facts, 0)["logits"]


def test_a_training_learns_from_what_a_function_has_said(config, modules, tmp_path, capsys):
    modules(own_teacher=CODE)
    import own_teacher

    facts = record(config, tmp_path / "answers", teacher="own_teacher:teach")
    assert facts.teacher.startswith(
        "own_teacher:teach; images normalised by (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), resized to 14"
    )
    answers, asked = host_answers(AnswersFolder(tmp_path / "answers")), len(own_teacher.seen)
    assert answers.shape == (3, 32, 10) and own_teacher.seen[-1].shape == (32, 14, 14, 3)
    np.testing.assert_array_equal(answers[-1], own_teacher.teach(own_teacher.seen[-1]))

    config.teacher.answers = str(tmp_path / "answers")
    train(config, tmp_path / "run")
    assert len(own_teacher.seen) == asked + 1
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["train/distillation_loss"] for row in rows if "train/distillation_loss" in row]
    assert len(losses) == 3 and np.isfinite(losses).all()

    results = json.loads((tmp_path / "run/results.json").read_text())
    recorded = results["recorded_teacher"]
    assert results["teacher"] is None and recorded["teacher"] == facts.teacher
    assert recorded["answers"] == config.teacher.answers
    assert recorded["decisions"] == AnswersFolder(tmp_path / "answers").figures()
    printed = capsys.readouterr().out
    line = r"recorded teacher: own_teacher:teach, which decides for the larger class of the target in \d+\.\d % of 96 "
    assert re.search(line, printed)
    page = Page(report(tmp_path / "run").read_text()).text
    assert re.search(line, page) and "regnety_002 (not used)" in page and page.count("regnety_002") == 1


COLLAPSED = """
import numpy as np

def teach(images):
    return np.tile(np.arange(10.0), (len(images), 1)) + 1e-3 * images.mean((1, 2, 3))[:, None]
"""


def test_a_collapsed_teacher_is_reported(config, modules, tmp_path, capsys):
    """At the end of the recording, and again by a training from its answers."""
    modules(own_teacher=COLLAPSED)
    config.augment.mixup_alpha = config.augment.cutmix_alpha = 0.0
    config.distillation.kind = "hard"
    record(config, tmp_path / "answers", teacher="own_teacher:teach")
    last = CLASS_NAMES[-1]
    printed = capsys.readouterr().out
    assert re.search(
        rf"the teacher decides for the image's class in \d+\.\d % of 96 training rows; .* \"{last}\", 100\.0 %", printed
    )
    assert f'warning: the teacher decides for "{last}" in 100.0 % of the rows, while no class has more than' in printed
    figures = AnswersFolder(tmp_path / "answers").figures()
    assert figures["compared"] == "all" and figures["steps"] == 3

    record(config, tmp_path / "answers", teacher="own_teacher:teach")  # nothing is missing
    assert printed.splitlines()[-1] in capsys.readouterr().out
    config.train.max_steps = 5
    record(config, tmp_path / "answers", teacher="own_teacher:teach")
    assert AnswersFolder(tmp_path / "answers").figures()["rows"] == 5 * 32


def test_a_recording_goes_on_with_the_same_teacher_alone(config, modules, tmp_path):
    modules(own_teacher=CODE)
    import own_teacher

    folder = tmp_path / "answers"
    first = record(config, folder, teacher="own_teacher:teach")
    config.train.max_steps = 5
    own_teacher.NOISE = 1e-5  # as another number of threads
    again = record(config, folder, teacher="own_teacher:teach")
    assert (first.total_steps, again.total_steps, first.digest) == (3, 5, again.digest)
    own_teacher.NOISE = 0.01
    config.train.max_steps = 6
    with pytest.raises(
        AnswersError, match=r"does not fit this run: teacher\.logits: the answers have .*; give another folder"
    ):
        record(config, folder, teacher="own_teacher:teach")
    with pytest.raises(ConfigError, match=r"config\.distillation\.kind=soft needs a teacher"):
        record(config, folder)


def test_the_configured_teacher_has_no_part(config, modules, tmp_path):
    modules(own_teacher=CODE)
    config.teacher.weights = str(tmp_path / "nowhere")
    record(config, tmp_path / "answers", teacher="own_teacher:teach")
    config.distillation.kind = "none"
    config.model.name = "deit_tiny_patch16_224"
    with pytest.raises(ConfigError, match=r"config\.teacher is set but config\.distillation\.kind is none"):
        record(config, tmp_path / "other", teacher="own_teacher:teach")
    assert not (tmp_path / "other").exists()


def test_a_teacher_that_fails_later_is_one_line(config, modules, tmp_path):
    code = "\nMOST = 3\ndef tires(images):\n    if len(seen) > MOST: raise RuntimeError('no memory')\n    return teach(images)"
    modules(own_teacher=CODE + code)
    import own_teacher

    folder = AnswersFolder(tmp_path / "answers")
    with pytest.raises(
        ConfigError, match=r"^--teacher=own_teacher:tires raises RuntimeError: no memory \(.*line \d+\) for"
    ):
        record(config, folder.path, teacher="own_teacher:tires")
    assert folder.facts() is not None and not folder.has(0)
    own_teacher.MOST = 100
    record(config, folder.path, teacher="own_teacher:tires")
    assert len(host_answers(folder)) == 3


def test_the_command_line_names_a_wrong_teacher_in_one_line(tmp_path):
    line = refused("--mode=record", TINY, f"--output={tmp_path / 'answers'}", "--teacher=nowhere:teach")
    assert line.startswith(
        "error: --teacher=nowhere:teach: there is no module 'nowhere': install it, or put its folder"
    )
    assert not (tmp_path / "answers").exists()
