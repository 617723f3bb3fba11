import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.data.identity import Images
from deit_jax.models import create_model
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.sharding import replicated
from deit_jax.storage.workdir import TEACHER_SCORES
from deit_jax.training.teacher import FrozenTeacher, Teacher, freeze, score_teacher
from tests.tiny import TEACHER

IMAGES = np.random.default_rng(0).normal(size=(2, 28, 28, 3)).astype(np.float32)


def test_a_step_is_compiled_for_the_model_of_the_teacher_not_its_weights():
    model = create_model("regnety_002", 10, 28, **TEACHER)
    mesh, init = make_mesh(jax.devices()[:1]), jax.jit(model.init)
    one, other = (
        jax.device_put(
            freeze(model, init(jax.random.key(seed), IMAGES), "", compute_dtype="float32").for_step(mesh),
            replicated(mesh),
        )
        for seed in range(2)
    )
    assert len(jax.tree.leaves(one)) == len(jax.tree.leaves(one.variables)) and one.model.grouped_conv == "packed"
    ask = jax.jit(lambda teacher, images: teacher.logits(images))
    logits = ask(one, IMAGES)
    assert logits.shape == (2, 10) and logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, jax.jit(one.model.apply)(one.variables, IMAGES).logits, rtol=1e-5, atol=1e-6)
    assert np.abs(ask(other, IMAGES) - logits).max() > 1e-4
    assert ask._cache_size() == 1
    ask(FrozenTeacher(one.model.clone(grouped_conv="native"), one.variables), IMAGES)
    assert ask._cache_size() == 2


# --- Scores ---

SCORES = {"class": {"top1": 12.5, "top5": 50.0, "loss": 2.25}}
EVALUATION, PROTOCOL = Images(90, "ab"), {"protocol": "deit", "crop": 28}


def teacher_of(value, dtype=jnp.bfloat16, **fields):
    model = create_model("regnety_002", 10, 28, **TEACHER | fields)
    return Teacher(model, {"params": {"kernel": jnp.full((2, 3), value, dtype), "bias": jnp.zeros(())}}, "a teacher")


@pytest.fixture
def score(tmp_path):
    """Scores a teacher in one workdir; returns whether it was measured."""

    def call(teacher, images=EVALUATION, protocol=PROTOCOL):
        measured = []
        scores = score_teacher(tmp_path, teacher, lambda: measured.append(1) or SCORES, images, protocol)
        assert scores == SCORES
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
        {"images": Images(90, "")},  # unknown images
        {"protocol": PROTOCOL | {"crop": 32}},
    ],
)
def test_a_teacher_is_measured_again_if_an_input_of_its_score_changes(score, changed):
    arguments = {"teacher": teacher_of(1.0)} | changed
    assert score(teacher_of(1.0)) and score(**arguments)


@pytest.mark.parametrize("content", ["", "[1]", '{"scores": 1}', "{"])
def test_a_teacher_is_measured_again_if_the_file_is_damaged(score, tmp_path, content):
    score(teacher_of(1.0))
    (tmp_path / TEACHER_SCORES).write_text(content)
    assert score(teacher_of(1.0)) and not score(teacher_of(1.0))
