"""A run from recorded answers is the live run that recorded them, to the bit on CPU: parameters, moving average and metrics."""

import jax
import numpy as np
import pytest

from deit_jax.answers import files
from deit_jax.answers.files import AnswersError, AnswersFolder
from deit_jax.answers.recording import Recording
from deit_jax.config import ConfigError
from deit_jax.data.sources import DataError
from deit_jax.errors import Stopped
from deit_jax.modes.record import record
from deit_jax.modes.train import train
from deit_jax.reporting.run_log import read_metrics
from deit_jax.storage.workdir import Workdir
from deit_jax.training.checkpointing import load_variables
from deit_jax.training.interruption import Interruption
from tests.fewer_devices import fewer_devices
from tests.tiny import STUDENT, TEACHER, tiny_config

STEPS = 9  # three epochs of 48 positions, 16 images with 3 repeats each


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.npz"
    write(path)
    return path


def write(path, edited=None):
    images = np.random.default_rng(0).integers(0, 255, (48, 28, 28, 3), dtype=np.uint8)
    if edited is not None:
        images[edited] //= 2
    names = [str(number) for number in range(10)]
    few = {"test_images": images[:8], "test_labels": np.arange(8)}
    np.savez(path, train_images=images, train_labels=np.arange(48) % 10, class_names=names, **few)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Shards of two steps: four whole ones and a half."""
    monkeypatch.setattr(files, "_SHARD_STEPS", 2)


def config(data, **changes):
    """All that is random is on but RandAugment, which compiles for seconds: repeats, crops, flips, erasing, both mixings."""
    config = tiny_config(
        data__source="npz", data__path=str(data), data__max_eval_images=8, evaluation__batch_size=8, train__batch_size=16,
        augment__groups_per_block=4, augment__group_size=4, train__max_steps=None, train__epochs=3, schedule__warmup_epochs=0,
        checkpoint__every_steps=3, evaluation__every_epochs=0,
    )  # fmt: skip
    with config.unlocked():
        config.model.overrides = STUDENT | {"depth": 1}
        config.teacher.overrides = TEACHER | {"depth": 1}
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def from_answers(path, **changes):
    return {"teacher__answers": str(path), "teacher__weights": "", **changes}


def outcome(workdir):
    """Metrics of the steps, raw and averaged weights of a run."""
    rows = [
        {name: value for name, value in row.items() if name.startswith("train/")}
        for row in read_metrics(workdir)
        if "train/loss" in row
    ]
    assert len(rows) == STEPS and "train/teacher_agreement" in rows[0]
    return rows, *(load_variables(workdir, which)[0] for which in ("raw", "ema"))


def assert_same(one, other):
    found, expected = outcome(one), outcome(other)
    assert found[0] == expected[0]
    jax.tree.map(np.testing.assert_array_equal, found[1:], expected[1:])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


@pytest.fixture(scope="module")
def live(data, tmp_path_factory):
    """The workdir of a live run that recorded its teacher, and the folder of the answers."""
    folder = tmp_path_factory.mktemp("live")
    with pytest.MonkeyPatch.context() as patch, fewer_devices():
        patch.setattr(files, "_SHARD_STEPS", 2)
        train(config(data, teacher__record=str(folder / "answers")), folder / "run")
    return folder / "run", folder / "answers"


def test_a_run_from_decisions_is_the_live_run_to_the_bit(data, live, tmp_path):
    run, answers = live
    with fewer_devices():
        train(config(data, **from_answers(answers)), tmp_path / "run")
    assert_same(tmp_path / "run", run)
    assert len(contents(answers)) == 6
    record_of = Workdir.at(tmp_path / "run").read_json("config.json")["resolved"]
    assert record_of["answers"]["digest"] == AnswersFolder(answers).facts().digest and "teachers" not in record_of


def test_the_recorder_writes_what_the_live_run_wrote_whenever_it_is_killed(data, live, tmp_path, monkeypatch):
    """Killed after each of its steps in turn, it reads the images of whole shards no more."""
    noted, note = [], Recording.note

    class Killed(Exception):
        pass

    def noting(self, step, *rest):
        noted.append(step)
        note(self, step, *rest)
        if step == 2 * (len(kills) + 1):
            raise Killed

    monkeypatch.setattr(Recording, "note", noting)
    kills = []
    with fewer_devices():
        while len(kills) < 4:
            with pytest.raises(Killed):
                record(config(data), tmp_path / "answers")
            kills.append(list(noted))
            noted.clear()
        monkeypatch.setattr(Recording, "note", lambda self, *given: (noted.append(given[0]), note(self, *given)))
        record(config(data), tmp_path / "answers")
        assert kills == [[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 8]] and noted == [8]
        noted.clear()
        record(config(data), tmp_path / "answers")  # all is there
    assert noted == [] and contents(tmp_path / "answers") == contents(live[1])


@pytest.mark.parametrize("stop", [3, pytest.param(4, marks=pytest.mark.long)])  # within a shard, and at its end
def test_a_run_that_goes_on_records_and_reads_the_same(data, live, tmp_path, monkeypatch, stop):
    run, answers = live
    one = config(data, teacher__record=str(tmp_path / "answers"))
    other = config(data, **from_answers(answers))
    with fewer_devices():
        for workdir, each in ((tmp_path / "recording", one), (tmp_path / "reading", other)):
            with monkeypatch.context() as patch, pytest.raises(Stopped):
                patch.setattr(Interruption, "asked", lambda self, step: step == stop)
                train(each, workdir)
            if each is one:
                (tmp_path / "answers" / "shard-000000.bin").unlink()  # as if the disk had lost it
            train(each, workdir)
            assert_same(workdir, run)
    assert contents(tmp_path / "answers") == contents(answers)


@pytest.mark.long
def test_an_ordinary_live_run_ends_with_the_same_bits(data, live, tmp_path):
    """Of one program, which nothing but this shows for the CPU."""
    with fewer_devices():
        train(config(data), tmp_path / "run")
    assert_same(tmp_path / "run", live[0])


@pytest.mark.long
def test_several_students_learn_from_one_recording(data, live, tmp_path):
    student = config(data, **from_answers(live[1]), train__accumulation_steps=2, distillation__alpha=0.3)
    student.optimizer.weight_decay = 0.0
    with fewer_devices(), student.unlocked():
        student.model.overrides.embed_dim = 24
        train(student, tmp_path / "run")
    assert len(outcome(tmp_path / "run")[0]) == STEPS


def test_an_edited_image_is_found_and_a_changed_set_refused(data, live, tmp_path, monkeypatch):
    write(tmp_path / "edited.npz", edited=7)
    edited = config(tmp_path / "edited.npz", **from_answers(live[1]))
    with fewer_devices():
        with pytest.raises(AnswersError, match=r"data\.digest: the answers have"):
            train(edited, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        # A source that does not know its images by content, as a folder does not.
        facts = AnswersFolder(live[1]).facts()
        monkeypatch.setattr("deit_jax.data.identity.fingerprint_of", lambda _: facts.fingerprint["data"]["digest"])
        with pytest.raises(DataError, match=r"the crop of image 7 of .*edited\.npz .* is not the one that the teacher"):
            train(edited, tmp_path / "run")


def test_what_does_not_fit_is_refused_before_anything_is_written(data, live, tmp_path):
    answers = from_answers(live[1])
    cases = [
        ({**answers, "augment__mixup_alpha": 0.5}, AnswersError, r"augment\.mixup_alpha: the answers have 0\.8, this run 0\.5"),
        ({**answers, "train__epochs": 4}, ConfigError, "ends after 9 steps, this run has 12"),
        ({**answers, "distillation__kind": "soft"}, ConfigError, "holds decisions"),
        ({**answers, "teacher__weights": "random", "teacher__name": "regnety_004"}, AnswersError, r"teacher\.name: the answers"),
        ({**answers, "on_nonfinite": "rollback"}, ConfigError, "rollback does not work with"),
        ({**answers, "teacher__record": "x"}, ConfigError, "exclude each other"),
        ({"teacher__record": str(live[1]), "seed": 3}, AnswersError, r"seed: the answers have 0, this run 3"),
        ({"teacher__record": str(live[1]), "teacher__record_as": "logits"}, AnswersError, "holds other answers: decisions, not"),
        ({"teacher__record": str(data.parent)}, AnswersError, r"holds other files and no answers\.json"),
        ({"distillation__kind": "labels", "teacher__answers": "x", "teacher__weights": ""}, ConfigError, "kind is labels"),
    ]  # fmt: skip
    with fewer_devices():
        for changes, error, said in cases:
            with pytest.raises(error, match=said):
                train(config(data, **changes), tmp_path / "run")
            assert not (tmp_path / "run").exists(), changes


def test_a_run_keeps_the_answers_that_it_began_with(data, live, tmp_path):
    begun = config(data, **from_answers(live[1]), train__max_steps=1)
    with fewer_devices():
        train(begun, tmp_path / "run")
        record(config(data, train__epochs=1, teacher__name="regnety_004"), tmp_path / "other")
        with pytest.raises(ConfigError, match="started with other answers than"):
            train(config(data, **from_answers(tmp_path / "other"), train__max_steps=2), tmp_path / "run")
        with pytest.raises(ConfigError, match=r"differs in teacher\.answers"):
            train(config(data, train__max_steps=2), tmp_path / "run")
        (tmp_path / "moved").symlink_to(live[1])
        train(config(data, **from_answers(tmp_path / "moved"), train__max_steps=2), tmp_path / "run")


@pytest.mark.long
@pytest.mark.parametrize("top_k", [None, 3])
def test_a_soft_run_from_logits_is_the_live_run_that_recorded_them(data, tmp_path, top_k):
    soft = {"distillation__kind": "soft", "distillation__tau": 3.0, "teacher__top_k": top_k}
    with fewer_devices():
        train(config(data, **soft, teacher__record=str(tmp_path / "answers")), tmp_path / "live")
        train(config(data, **from_answers(tmp_path / "answers", **soft)), tmp_path / "run")
        assert_same(tmp_path / "run", tmp_path / "live")
        if top_k is None:
            train(config(data, **soft), tmp_path / "ordinary")
            for found, expected in zip(outcome(tmp_path / "run")[0], outcome(tmp_path / "ordinary")[0], strict=True):
                np.testing.assert_allclose(found["train/loss"], expected["train/loss"], rtol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(("devices", "accumulation"), [(1, 2), (2, 1)])
def test_with_the_whole_recipe_on_several_devices(data, tmp_path, devices, accumulation):
    whole = {"augment__rand_augment": "rand-m9-mstd0.5-inc1", "train__accumulation_steps": accumulation}
    with fewer_devices(devices):
        train(config(data, **whole, teacher__record=str(tmp_path / "answers")), tmp_path / "live")
        record(config(data, **whole), tmp_path / "recorded")
        train(config(data, **from_answers(tmp_path / "recorded", **whole)), tmp_path / "run")
        train(config(data, **whole), tmp_path / "ordinary")
    assert contents(tmp_path / "recorded") == contents(tmp_path / "answers")
    assert_same(tmp_path / "run", tmp_path / "live")
    assert_same(tmp_path / "run", tmp_path / "ordinary")
