import dataclasses
import json

import numpy as np
import pytest

from deit_jax.config import ConfigError
from deit_jax.training.network_identity import NetworkIdentity, check_initial, check_teacher, weights_digest

VARIABLES = {"params": {"head": {"kernel": np.ones((2, 3), np.float32)}, "norm": {"bias": np.zeros(3, np.float32)}}}
TEACHER = NetworkIdentity("regnety_002", "ab" * 16, "raw", 12, True, ("cat", "dog"), 28)


def changed(**groups):
    return {"params": VARIABLES["params"] | groups}


def test_weights_digest_depends_on_names_values_and_shapes():
    digest = weights_digest(VARIABLES)
    assert weights_digest({"params": {k: dict(v) for k, v in reversed(VARIABLES["params"].items())}}) == digest
    others = [
        changed(norm={"bias": np.full(3, 1e-9, np.float32)}), changed(norm={"scale": np.zeros(3, np.float32)}),
        changed(head={"kernel": np.ones((3, 2), np.float32)}), VARIABLES | {"batch_stats": {"mean": np.zeros(1)}},
    ]  # fmt: skip
    assert len({weights_digest(other) for other in others} | {digest}) == 5
    assert weights_digest(changed(head={"kernel": np.zeros((5, 5))}), without=["head"]) == weights_digest(
        VARIABLES, without=["head"]
    )


def record(*entries):
    """Returns a workdir's record after a round trip through JSON."""
    return json.loads(json.dumps({"resolved": {"teachers": list(entries)}}))


def test_a_teacher_is_recorded_and_accepted_again():
    first = check_teacher("W", None, [TEACHER], on_change="stop", step=0)
    assert first == [{"from_step": 0, "networks": [dataclasses.asdict(TEACHER)]}]
    moved = dataclasses.replace(TEACHER, step=None, variables=None)  # the same weights, as a file
    for teacher in (TEACHER, moved):
        found = check_teacher("W", record(*first), [teacher], on_change="stop", step=40)
        assert found == record(*first)["resolved"]["teachers"]
    assert check_teacher("W", None, [], on_change="stop", step=0) == []


def test_another_teacher_raises_or_is_recorded_with_its_step(capsys):
    first = check_teacher("W", None, [TEACHER], on_change="stop", step=0)
    other = dataclasses.replace(TEACHER, weights="cd" * 16, step=20)
    with pytest.raises(ConfigError) as error:
        check_teacher("W", record(*first), [other], on_change="stop", step=40)
    message = str(error.value)
    assert "regnety_002 raw weights after step 12 (digest abababab)" in message and "\n" not in message
    assert "regnety_002 raw weights after step 20 (digest cdcdcdcd)" in message
    with pytest.raises(ConfigError, match=r"the teacher is now .* and "):
        check_teacher("W", record(*first), [TEACHER, other], on_change="stop", step=40)
    found = check_teacher("W", record(*first), [other], on_change="continue", step=40)
    assert [entry["from_step"] for entry in found] == [0, 40]
    assert found[1]["networks"] == [dataclasses.asdict(other)]
    assert "another teacher from step 40:" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ConfigError):  # the first teacher differs from the present one
        check_teacher("W", record(*found), [TEACHER], on_change="stop", step=50)


def test_an_unfinished_teacher_causes_a_warning(capsys):
    check_teacher("W", None, [dataclasses.replace(TEACHER, finished=False)], on_change="stop", step=0)
    assert "was not trained to the end of its schedule" in " ".join(capsys.readouterr().out.split())
    check_teacher("W", None, [TEACHER, dataclasses.replace(TEACHER, finished=None)], on_change="stop", step=0)
    assert capsys.readouterr().out == ""


def test_other_initial_weights_raise():
    known = {"resolved": {"initial": {"weights": "ab" * 16}}}
    check_initial("W", known, "ab" * 16)
    check_initial("W", None, "cd" * 16)
    check_initial("W", {"resolved": {}}, "cd" * 16)
    with pytest.raises(ConfigError, match=r"W started from other weights .* \(digest abababab then, cdcdcdcd now\)"):
        check_initial("W", known, "cd" * 16)
