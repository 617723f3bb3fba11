import jax.numpy as jnp
import pytest

from deit_jax.data.identity import Images
from deit_jax.models import create_model
from deit_jax.storage.workdir import TEACHER_SCORES
from deit_jax.training.teacher import Teacher
from deit_jax.training.teacher_scores import score_teacher
from tests.tiny import TEACHER

SCORES = {"class": {"top1": 12.5, "top5": 50.0, "loss": 2.25}}
IMAGES, PROTOCOL = Images(90, "ab"), {"protocol": "deit", "crop": 28}


def teacher_of(value, dtype=jnp.bfloat16, **fields):
    model = create_model("regnety_002", 10, 28, **TEACHER | fields)
    return Teacher(model, {"params": {"kernel": jnp.full((2, 3), value, dtype), "bias": jnp.zeros(())}}, "a teacher")


@pytest.fixture
def score(tmp_path):
    """Scores a teacher in one workdir; tells whether it was measured."""

    def call(teacher, images=IMAGES, protocol=PROTOCOL):
        measured = []
        found = score_teacher(tmp_path, teacher, lambda: measured.append(1) or SCORES, images, protocol)
        assert found == SCORES
        return bool(measured)

    return call


def test_a_teacher_is_measured_once(score, capsys):
    assert score(teacher_of(1.0))
    assert "12.50 %" in capsys.readouterr().out
    assert not score(teacher_of(1.0))
    assert "12.50 % (measured at an earlier start)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changed",
    [
        {"teacher": teacher_of(1.5)},
        {"teacher": teacher_of(1.0, jnp.float32)},
        {"teacher": teacher_of(1.0, group_width=4)},
        {"images": Images(90, "cd")},
        {"images": Images(80, "ab")},
        {"images": Images(90, "")},  # which images these are is not known
        {"protocol": PROTOCOL | {"crop": 32}},
    ],
)
def test_what_the_score_depends_on_has_it_measured_again(score, changed):
    arguments = {"teacher": teacher_of(1.0)} | changed
    assert score(teacher_of(1.0)) and score(**arguments)


@pytest.mark.parametrize("content", ["", "[1]", '{"scores": 1}', "{"])
def test_a_damaged_file_has_it_measured_again(score, tmp_path, content):
    score(teacher_of(1.0))
    (tmp_path / TEACHER_SCORES).write_text(content)
    assert score(teacher_of(1.0)) and not score(teacher_of(1.0))
