"""The folder of answers: whole files, the same bytes for the same content, and damage that is found."""

import dataclasses
import json

import numpy as np
import pytest

from deit_jax.answers.files import CROPS, FACTS, AnswersError, AnswersFolder, Facts, shard_steps
from deit_jax.answers.kinds import DECISIONS, LOGITS, AnswerKind

FACTS_OF = Facts(AnswerKind(DECISIONS, 10), 8, 7, 3, "somebody", {"seed": 1, "teacher": {}}, {"jax": "0"})
TOP = dataclasses.replace(FACTS_OF, kind=AnswerKind(LOGITS, 10, 2, 3.0))


def content(facts, shard, seed=0):
    rng = np.random.default_rng(seed + shard)
    return {name: rng.integers(0, 9, shape).astype(kind) for name, (kind, shape) in facts.arrays(shard).items()}


def recorded(path, facts=FACTS_OF):
    folder = AnswersFolder(path)
    folder.write_facts(facts)
    for shard in range(facts.shards):
        folder.write(facts, shard, content(facts, shard))
    return folder


@pytest.mark.parametrize("facts", [FACTS_OF, TOP], ids=["decisions", "top"])
def test_what_is_written_is_read(tmp_path, facts):
    folder = recorded(tmp_path / "deep" / "answers", facts)
    assert folder.facts() == facts and folder.facts().digest == facts.digest
    assert [facts.steps_of(shard) for shard in range(facts.shards)] == [(0, 3), (3, 6), (6, 7)]
    for shard in range(3):
        found, expected = folder.read(facts, shard), content(facts, shard)
        assert found.keys() == expected.keys() and CROPS in found
        for name, values in expected.items():
            assert found[name].dtype == values.dtype
            np.testing.assert_array_equal(found[name], values)
    assert folder.missing(facts, pytest.fail) == []


def test_bytes_depend_on_the_content_alone(tmp_path):
    for name in ("one", "other"):
        recorded(tmp_path / name)
    files = [sorted(path for path in (tmp_path / name).iterdir()) for name in ("one", "other")]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_every_flipped_byte_of_a_shard_is_found(tmp_path):
    folder = recorded(tmp_path)
    path = tmp_path / "shard-000001.bin"
    whole = path.read_bytes()
    for at in range(0, len(whole), 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(AnswersError, match=r"shard-000001\.bin"):
            folder.read(FACTS_OF, 1)
    path.write_bytes(whole[:-1])
    lines = []
    assert folder.missing(FACTS_OF, lines.append) == [1]
    assert len(lines) == 1 and "is damaged" in lines[0] and lines[0].endswith("it is recorded again")
    path.unlink()
    with pytest.raises(AnswersError, match=r"cannot be read .*run the recorder again"):
        folder.read(FACTS_OF, 1)
    assert folder.missing(FACTS_OF, pytest.fail) == [1]


def test_a_shard_in_the_place_of_another_or_of_other_answers_is_found(tmp_path):
    folder = recorded(tmp_path)
    (tmp_path / "shard-000000.bin").replace(tmp_path / "shard-000001.bin")
    with pytest.raises(AnswersError, match="does not belong to"):
        folder.read(FACTS_OF, 1)
    other = dataclasses.replace(FACTS_OF, fingerprint={"seed": 2, "teacher": {}})
    with pytest.raises(AnswersError, match="does not belong to"):
        folder.read(other, 2)


def test_a_longer_recording_goes_on_at_its_unfinished_shard(tmp_path):
    folder = recorded(tmp_path)
    longer = dataclasses.replace(FACTS_OF, total_steps=11)
    assert longer.digest == FACTS_OF.digest
    assert folder.missing(longer, lambda line: None) == [2, 3]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 1, "kind": {"name": 3}}'])
def test_damaged_facts_are_one_line(tmp_path, text):
    (tmp_path / FACTS).write_text(text)
    with pytest.raises(AnswersError, match=r"answers\.json is damaged"):
        AnswersFolder(tmp_path).facts()


def test_answers_of_a_later_version_and_other_folders_are_refused(tmp_path):
    folder = recorded(tmp_path / "later")
    path = tmp_path / "later" / FACTS
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(AnswersError, match="later version"):
        folder.facts()
    (tmp_path / "file").touch()
    with pytest.raises(AnswersError, match="is a file"):
        AnswersFolder(tmp_path / "file").refuse_other_files()
    with pytest.raises(AnswersError, match=r"holds other files and no answers\.json"):
        AnswersFolder(tmp_path).refuse_other_files()
    AnswersFolder(tmp_path / "new").refuse_other_files()


def test_one_recorder_at_a_time(tmp_path):
    folder = AnswersFolder(tmp_path / "answers")
    other = AnswersFolder(tmp_path / "answers").locked(pytest.fail)
    with folder.locked(pytest.fail), pytest.raises(AnswersError, match="another recorder writes to"), other:
        pass
    with folder.locked(pytest.fail):
        folder.refuse_other_files()


def test_a_shard_is_a_few_megabytes_at_most():
    assert shard_steps(AnswerKind(DECISIONS, 1000), 1024) == 256
    assert shard_steps(AnswerKind(LOGITS, 1000, 16, 1.0), 1024) == 39
    assert shard_steps(AnswerKind(LOGITS, 21_843), 4096) == 1
