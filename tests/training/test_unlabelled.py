"""Runs with unlabelled images: resumed, and from recorded answers."""

import jax
import numpy as np
import pytest

from deit_jax import register_loss
from deit_jax.answers import files
from deit_jax.answers.files import AnswersError
from deit_jax.config import ConfigError
from deit_jax.config_check import validate
from deit_jax.data.unlabelled import open_training_images
from deit_jax.modes.record import record
from deit_jax.modes.report import _unlabelled
from deit_jax.modes.train import train
from deit_jax.parallel.mesh import make_mesh
from deit_jax.reporting.run_log import read_metrics
from deit_jax.storage.workdir import Workdir
from deit_jax.training.checkpointing import load_variables
from deit_jax.training.plan import plan_of, rows_without_labels
from deit_jax.training.program import build_program
from tests.fewer_devices import fewer_devices
from tests.tiny import STUDENT, TEACHER, tiny_config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Files of 40 labelled images and of 30 and 31 unlabelled ones."""
    folder = tmp_path_factory.mktemp("data")
    images = np.random.default_rng(0).integers(0, 255, (110, 28, 28, 3), dtype=np.uint8)
    names = [str(number) for number in range(10)]
    few = {"test_images": images[:8], "test_labels": np.arange(8)}
    np.savez(folder / "data.npz", train_images=images[:40], train_labels=np.arange(40) % 10, class_names=names, **few)
    np.savez(folder / "more.npz", train_images=images[40:70])
    np.savez(folder / "other.npz", train_images=images[79:])
    return folder


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(files, "_SHARD_STEPS", 2)


def config(data, **changes):
    """Two steps an epoch of 16 labelled rows, each with 8 unlabelled rows."""
    config = tiny_config(
        data__source="npz", data__path=str(data / "data.npz"), data__max_eval_images=8, evaluation__batch_size=8,
        unlabelled__source="npz", unlabelled__path=str(data / "more.npz"), unlabelled__share=0.3, train__batch_size=24,
        augment__groups_per_block=4, augment__group_size=2, train__max_steps=None, train__epochs=2, schedule__warmup_epochs=0,
        checkpoint__every_steps=1, evaluation__every_epochs=0, augment__erase_probability=0.0,
        model__patch_keep_rate=0.5,
    )  # fmt: skip
    with config.unlocked():
        config.model.overrides = STUDENT | {"depth": 1}
        config.teacher.overrides = TEACHER | {"depth": 1}
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def from_answers(path, **changes):
    return {"teacher__answers": str(path), "teacher__weights": "", **changes}


def assert_same(one, other):
    rows = [
        [{name: value for name, value in row.items() if name.startswith("train/")} for row in read_metrics(workdir)]
        for workdir in (one, other)
    ]
    found, expected = ([row for row in of_run if row] for of_run in rows)
    assert found == expected and len(found) == 4
    for which in ("raw", "ema"):
        found, expected = (load_variables(workdir, which)[0] for workdir in (one, other))
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture(scope="module")
def live(data, tmp_path_factory):
    """The workdir of a run that recorded its teacher, and the folder of the answers."""
    folder = tmp_path_factory.mktemp("live")
    with pytest.MonkeyPatch.context() as patch, fewer_devices():
        patch.setattr(files, "_SHARD_STEPS", 2)
        train(config(data, teacher__record=str(folder / "answers")), folder / "run")
    return folder / "run", folder / "answers"


def test_a_resumed_run_from_answers_is_the_live_run_to_the_bit(data, live, tmp_path):
    run, answers = live
    with fewer_devices():
        for last in (1, 3, None):
            train(config(data, **from_answers(answers), train__max_steps=last), tmp_path / "run")
    assert_same(tmp_path / "run", run)
    recorded = Workdir.at(run).read_json("config.json")
    resolved = recorded["resolved"]
    assert (resolved["unlabelled_rows"], resolved["steps_per_epoch"], resolved["data"]["unlabelled"]["images"]) == (
        8,
        2,
        30,
    )
    assert _unlabelled(recorded, config(data), 4) == {
        "training images": "40 labelled, 16 rows of a batch, each seen 1.6 times; "
        "30 unlabelled, 8 rows of a batch, each seen 1.07 times"
    }


def test_the_recorder_writes_the_answers_of_the_live_run(data, live, tmp_path):
    with fewer_devices():
        record(config(data), tmp_path / "answers")
    one, other = (
        {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}
        for folder in (live[1], tmp_path / "answers")
    )
    assert one == other and len(one) > 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unlabelled__share": 0.7}, "steps_per_epoch: the answers have 2, this run 5 .and 1 more"),
        ({"unlabelled__path": "other.npz"}, "unlabelled.digest"),
        ({"unlabelled__source": "", "unlabelled__path": ""}, "the answers have"),
    ],
)
def test_answers_to_other_unlabelled_images_are_refused(data, live, tmp_path, changes, message):
    if "npz" in changes.get("unlabelled__path", ""):
        changes = changes | {"unlabelled__path": str(data / changes["unlabelled__path"])}
    with pytest.raises(AnswersError, match=message), fewer_devices():
        train(config(data, **from_answers(live[1]), **changes), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unlabelled__path": "other.npz"}, "30 unlabelled images then, 31 now"),
        ({"unlabelled__share": 0.7}, "differs in unlabelled.share"),
        ({"unlabelled__source": "", "unlabelled__path": ""}, "differs in unlabelled.source"),
    ],
)
def test_a_run_does_not_resume_with_other_unlabelled_images(data, live, tmp_path, changes, message):
    if "npz" in changes.get("unlabelled__path", ""):
        changes = changes | {"unlabelled__path": str(data / changes["unlabelled__path"])}
    with pytest.raises(ConfigError, match=message), fewer_devices():
        train(config(data, teacher__record=str(live[1]), **changes), live[0])


def test_a_registered_loss_needs_equal_microbatches(data, modules):
    def loss(outputs, targets, teacher_logits):
        labelled = (targets.sum(-1) > 0).sum()
        return outputs.class_logits.mean() / labelled, {}

    register_loss("own", lambda: loss, needs_teacher=True, teaches_token=True)
    mesh = make_mesh(jax.devices()[:1])
    for count in (4, 6):  # of 6 or 4 rows: three or two of the groups L L U L L U ...
        own = config(data, distillation__kind="own", train__accumulation_steps=count)
        validate(own)
        plan = plan_of(own, open_training_images(own))
        if count == 4:
            build_program(own, plan, mesh)
            continue
        with pytest.raises(
            ConfigError, match="microbatches have different shares of unlabelled images in mixing groups of 2"
        ):
            build_program(own, plan, mesh)


def test_a_batch_without_two_kinds_of_groups_is_refused(data):
    with pytest.raises(ConfigError, match=r"^config\.train\.batch_size=24 .*unlabelled\.share=0\.3.*multiple of 48"):
        rows_without_labels(config(data, augment__group_size=6))
    with pytest.raises(ConfigError, match="exceed the 30 positions of one pass over the 30 unlabelled images"):
        own = config(data, train__batch_size=120, unlabelled__share=0.7)
        plan_of(own, open_training_images(own))
