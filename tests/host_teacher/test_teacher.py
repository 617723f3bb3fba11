"""A teacher that is a function of the user's: what it is given, what its answers become, and every fault in one line."""

import json
import sys

import jax
import numpy as np
import pytest

from deit_jax.config import ConfigError
from deit_jax.host_teacher import HostTeacher, changed_field
from tests.tiny import tiny_config

NAMES = ("cat", "dog", "eel")
# Three logits from the mean of each channel, and what it was given.
TEACHER = """
import numpy as np

given = []

def teach(images):
    given.append(images)
    means = images.mean((1, 2), dtype=np.float64)
    return means @ np.array([[3.0, -1.0, 0.0, 2.0], [0.0, 2.0, -2.0, 1.0], [1.0, 1.0, 1.0, -4.0]])[:, :CLASSES]
"""


def teacher_of(spec, **changes):
    return HostTeacher(spec, tiny_config(teacher__weights="", **changes), NAMES, 28)


def code(classes=3, more=""):
    return TEACHER.replace("CLASSES", str(classes)) + more


def images_of(seed=0, rows=5):
    return np.random.default_rng(seed).normal(size=(rows, 28, 28, 3)).astype(np.float32)


def test_a_function_gets_the_students_images_as_they_are(modules):
    modules(plain=code())
    teacher, images = teacher_of("plain:teach"), images_of()
    answer = teacher.logits(jax.numpy.asarray(images))
    given = sys.modules["plain"].given[-1]
    np.testing.assert_array_equal(given, images)
    assert given.flags.writeable and isinstance(given, np.ndarray) and given.dtype == np.float32
    np.testing.assert_allclose(answer, images.mean((1, 2)) @ [[3, -1, 0], [0, 2, -2], [1, 1, 1]], atol=1e-6)
    assert (answer.dtype, teacher.num_classes) == (np.float32, 3)
    assert teacher.description == ("plain:teach; images normalised by (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)")


def test_images_are_normalised_and_sized_for_it(modules):
    modules(
        own__a="",
        own__b=code(more="teach.mean = [0.5, 0.4, 0.3]\nteach.std = np.array([0.25, 0.5, 1])\nteach.image_size = 56"),
    )
    teacher, images = teacher_of("own.b:teach"), images_of()
    teacher.logits(images)
    given = sys.modules["own.b"].given[-1]
    assert given.shape == (5, 56, 56, 3) and "resized to 56 pixels" in teacher.description
    config = tiny_config()
    rgb = images * np.asarray(config.augment.std) + np.asarray(config.augment.mean)
    expected = (rgb - [0.5, 0.4, 0.3]) / [0.25, 0.5, 1.0]
    np.testing.assert_allclose(given, jax.image.resize(expected, given.shape, "bicubic"), atol=1e-4)
    # A constant image stays one, and a smaller size averages: no aliasing.
    modules(small=code(more="teach.image_size = 7"))
    stripes = np.zeros((1, 28, 28, 3), np.float32)
    stripes[:, ::2] = 1
    teacher_of("small:teach").logits(stripes)
    np.testing.assert_allclose(sys.modules["small"].given[-1], 0.5, atol=0.06)


def test_the_configurations_normalisation_has_precedence(modules):
    modules(half=code(more="teach.mean = (0.5, 0.5, 0.5)"))
    same = {"teacher__mean": (0.485, 0.456, 0.406)}
    assert "(0.485, 0.456, 0.406)" in teacher_of("half:teach", **same).description
    assert teacher_of("half:teach").identity["input_mean"] == [0.5, 0.5, 0.5]


def test_its_classes_are_those_asked_for(modules):
    modules(
        four=code(4),
        named=code(4, "teach.class_names = ['eel', 'cat', 'newt', 'dog']"),
        same=code(3, f"teach.class_names = {NAMES}"),
    )
    images = images_of()
    every = images.mean((1, 2)) @ np.array([[3, -1, 0, 2], [0, 2, -2, 1], [1, 1, 1, -4]])
    picked = teacher_of("four:teach", teacher__classes=(3, 0, 3))
    np.testing.assert_allclose(picked.logits(images), every[:, [3, 0, 3]], atol=1e-6)
    named = teacher_of("named:teach")
    np.testing.assert_allclose(named.logits(images), every[:, [1, 3, 0]], atol=1e-6)
    assert named.description.endswith("; 3 of its 4 classes, matched by name")
    assert (named.identity["columns"], named.identity["own_classes"]) == ([1, 3, 0], 4)
    assert teacher_of("same:teach").identity["columns"] is None


@pytest.mark.parametrize(
    ("more", "changes", "message"),
    [
        (
            "",
            {"teacher__classes": (0, 4, 1)},
            r"config\.teacher\.classes asks for class 4, --teacher=m:teach has 4, counted",
        ),
        (
            "",
            {"teacher__classes": (0, 1)},
            r"config\.teacher\.classes names 2 of the teacher's classes, the student has 3",
        ),
        ("", {}, "m:teach has 4 classes, the student 3: they must be equal, or config.teacher.classes must name"),
        ("teach.class_names = 'a', 'b', 'c'", {}, "m:teach names 3 classes and returns logits of 4"),
        (
            "teach.class_names = 'cat', 'dog', 'Eel', 'd'",
            {},
            "other classes than the student .*'Eel' and 'eel' differ only in case",
        ),
        ("teach.class_names = 'cat', 'dog', 'eel', 'eel'", {}, "other classes than the student"),
    ],
)
def test_classes_that_do_not_fit_are_refused(modules, more, changes, message):
    modules(m=code(4, more))
    with pytest.raises(ConfigError, match=message):
        teacher_of("m:teach", **changes)


def test_names_are_not_compared_where_the_student_has_more_classes_than_its_data(modules):
    modules(m=code(4, "teach.class_names = 'abcd'"))
    assert teacher_of("m:teach", num_classes=4).logits(images_of()).shape == (5, 4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return images.mean((1, 2))[1:]", r"returns the shape \[7, 3\]: return the logits of 8 images, floating-point \[8, cl"),
        ("return images", r"returns the shape \[8, 28, 28, 3\]"),
        ("return images.mean()", r"returns the shape \[\]"),
        ("return images[:, :0, 0, 0]", r"returns the shape \[8, 0\]"),
        ("return images.mean((1, 2)).argmax(1)", "returns int64 numbers, not logits"),
        ("return {'logits': images}", "returns a dict: return the logits"),
        ("return None", "returns a NoneType: return"),
        ("return 'cat'", "returns a str: return"),
        ("return [[1.0, 2.0], [1.0]]", "returns a list: return"),
        ("return np.log(images.mean((1, 2)) * [0.0, 1, 1])", "a NaN or infinite logit for image 0 of 8"),
        ("\n    raise KeyError('weights')", r"raises KeyError: 'weights' \(.*m\.py, line 4\) for images float32\[8, 28, 28, 3\]"),
        ("raise SystemExit(3)", r"raises SystemExit: 3 \("),
        ("return np.linalg.inv(images)", r"raises LinAlgError: .*m\.py, line 3\)"),
        ("return images.mean((1, 2))[:, :len(images) // 3 + 1]", r"returns the shape \[4, 2\]: .*\[4, 3\]"),
        ("return images.mean((1, 2)) - images.mean()", "in another batch .* put the model into evaluation mode"),
        ("return images.mean((1, 2)) * rng.integers(0, 2, (len(images), 3))", "other logits for the same images"),
    ],
)  # fmt: skip
def test_a_teacher_that_is_no_teacher_is_one_line(modules, body, message):
    modules(m=f"import numpy as np; rng = np.random.default_rng(0)\ndef teach(images):\n    {body}\n")
    with np.errstate(all="ignore"), pytest.raises(ConfigError, match=message) as raised:
        teacher_of("m:teach")
    assert str(raised.value).startswith("--teacher=m:teach ") and "\n" not in str(raised.value)


def test_what_goes_wrong_later_is_one_line_too(modules):
    modules(
        m=code(
            more="\nfirst = teach\ndef teach(images):\n    return first(images) if len(images) < 9 else first(images)[:, :2]"
        )
    )
    teacher = teacher_of("m:teach")
    with pytest.raises(
        ConfigError, match=r"returns the shape \[9, 2\]: return the logits of 9 images, floating-point \[9, 3\]"
    ):
        teacher.logits(images_of(rows=9))


def test_half_precision_and_jax_are_taken(modules):
    modules(
        m=code(more="\nimport jax.numpy as jnp\ndef low(images):\n    return jnp.asarray(teach(images), 'bfloat16')")
    )
    answer = teacher_of("m:low").logits(images_of())
    np.testing.assert_allclose(answer, teacher_of("m:teach").logits(images_of()), rtol=0.01)
    assert answer.dtype == np.float32


def test_probabilities_are_noticed(modules, capsys):
    modules(
        m=code(
            more="\ndef soft(images):\n    power = np.exp(teach(images))\n    return power / power.sum(1, keepdims=True)"
        )
    )
    teacher_of("m:teach")
    assert "add up to 1" not in capsys.readouterr().out
    teacher_of("m:soft")
    assert "add up to 1: probabilities?" in " ".join(capsys.readouterr().out.split())


def test_the_identity_is_that_of_what_it_answers(modules):
    modules(
        m=code(
            more="\ndef near(images):\n    return teach(images) * (1 + 1e-5)"
            "\ndef other(images):\n    return teach(images) * [1, 1, 1.01]"
        )
    )
    first = teacher_of("m:teach").identity
    recorded = json.loads(json.dumps(first))
    assert changed_field(recorded, first) is None
    assert np.shape(first["logits"]) == (8, 3) and np.ptp(first["logits"], axis=0).min() > 0.1
    near, other = (teacher_of(f"m:{name}").identity for name in ("near", "other"))
    assert changed_field(recorded, near | {"spec": "m:teach"}) is None
    assert changed_field(recorded, near) == "spec"
    assert changed_field(recorded, other | {"spec": "m:teach"}) == "logits"
    assert changed_field(recorded, teacher_of("m:teach", teacher__std=(0.5, 0.5, 0.5)).identity) == "input_std"
    assert changed_field({**recorded, "new": 1}, first) == changed_field(recorded, {**first, "new": 1}) == "new"
