"""The rules in deit_jax/training/loop.py, by number, checked on the calls of a real run."""

import shutil

import numpy as np
import pytest

from deit_jax.config import ConfigError
from deit_jax.errors import Stopped
from deit_jax.evaluation.run import Evaluator
from deit_jax.reporting.run_log import RunLog, read_metrics
from deit_jax.reporting.speed import Pace
from deit_jax.training import loop
from deit_jax.training.checkpointing import Checkpoints
from deit_jax.training.divergence import Watch
from deit_jax.training.interruption import Interruption
from deit_jax.training.preparation import build_run, open_run
from tests.fewer_devices import fewer_devices
from tests.tiny import STUDENT, tiny_config

STEPS = 11
STOP = 6  # a step that is logged, but evaluated and saved only because of the stop
# The recorded calls, and which argument of each.
CALLS = (
    (RunLog, "begin", 0), (RunLog, "write", 0), (RunLog, "sync", None), (Watch, "note", 0), (Watch, "read", "through"),
    (Evaluator, "weights", None), (Checkpoints, "save", 0), (Checkpoints, "wait", None), (Interruption, "asked", 0),
    (Pace, "pause", None), (Pace, "restart", None), (loop, "Stopped", None), (loop, "write_results", None),
)  # fmt: skip


def tiny_run_config(data):
    """Logs every 3 steps, saves every 4 and evaluates every 5, which is an epoch; all of it after the last of 11."""
    config = tiny_config(
        distillation__kind="none", teacher__weights="", data__source="npz", data__path=str(data), data__repeats=1,
        data__max_eval_images=8, evaluation__batch_size=8, train__batch_size=8, augment__groups_per_block=2,
        augment__erase_probability=0.0, train__max_steps=STEPS, evaluation__every_epochs=1, checkpoint__every_steps=4,
        log__every_steps=3, ema__decay=0.0,
    )  # fmt: skip
    with config.unlocked():
        config.model.overrides = STUDENT | {"depth": 1}
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(calls of a run that stops after step STOP, calls of the run that resumes it, their workdir)."""
    folder, calls, stop = tmp_path_factory.mktemp("order"), [], STOP
    images = np.random.default_rng(0).integers(0, 255, (40, 28, 28), dtype=np.uint8)
    few = {"test_images": images[:8], "test_labels": np.arange(8)}
    names = [str(number) for number in range(10)]
    np.savez(folder / "data.npz", train_images=images, train_labels=np.arange(40) % 10, class_names=names, **few)

    def recorded(owner, name, argument):
        method = getattr(owner, name)

        def call(*arguments, **named):
            given = {**named, **dict(enumerate(arguments if owner is loop else arguments[1:]))}
            value = given[argument] if argument is not None else None
            calls.append((name, int(value.step) if name == "save" else value))
            return method(*arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patch, fewer_devices():
        patch.setattr(Interruption, "asked", lambda self, step: step == stop)
        for owner, name, argument in CALLS:
            patch.setattr(owner, name, recorded(owner, name, argument))
        with pytest.raises(Stopped):
            loop.train(tiny_run_config(folder / "data.npz"), folder / "run")
        before, calls, stop = calls, [], None
        loop.train(tiny_run_config(folder / "data.npz"), folder / "run")
    return before, calls, folder / "run"


def place(calls, name, value=None):
    """Returns the index of the first call with that name and argument."""
    return calls.index((name, value))


def test_a_state_is_judged_before_it_is_evaluated_or_saved(runs):
    """Rule 1."""
    for calls in runs[:2]:
        noted, judged = None, None
        for name, value in calls:
            if name == "note":
                noted = value
            elif name == "read":
                judged = value
            elif name in ("save", "weights"):
                assert judged == noted
    saved = [value for calls in runs[:2] for name, value in calls if name == "save"]
    assert [step for step in saved if step != 10] == [4, 5, STOP, 8, STEPS]  # the 10th if it is the best so far


def test_rows_are_synced_before_their_checkpoint(runs):
    """Rule 2. The row of a step is written late, but before its checkpoint."""
    for calls in runs[:2]:
        for number, (name, step) in enumerate(calls):
            if name == "save":
                last = [called for called in calls[:number] if called[0] in ("write", "sync", "save")][-1]
                assert last == ("sync", None)
                assert not [row for called, row in calls[number:] if called == "write" and row <= step]
    logged = [row["step"] for row in read_metrics(runs[2]) if "train/loss" in row]
    assert logged == [1, 3, 6, 9, STEPS]


def test_a_step_is_evaluated_before_it_is_saved_and_saved_before_the_run_stops(runs):
    """Rule 3."""
    before, after, _ = runs
    for calls, step in ((before, 5), (after, STEPS)):
        names = [name for name, _ in calls[place(calls, "note", step) : place(calls, "save", step)]]
        assert names.index("weights") < names.index("write", names.index("weights")) < names.index("sync")
    assert place(before, "save", STOP) < place(before, "Stopped")


def test_saves_are_complete_before_they_are_relied_on(runs):
    """Rule 4. `save` itself waits for the write before it."""
    before, after, _ = runs
    for calls, step, then in ((before, STOP, "Stopped"), (after, STEPS, "write_results")):
        names = [name for name, _ in calls[place(calls, "save", step) : place(calls, then)]]
        assert names.count("wait") >= 2


def test_a_step_is_read_after_the_next_one_is_dispatched(runs):
    """Rule 6. When the run pauses anyway, all metrics are read."""
    before, after, _ = runs
    assert place(before, "note", 4) < place(before, "read", 3) < place(before, "write", 3) < place(before, "pause")
    assert place(before, "note", STOP) < place(before, "write", STOP) < place(before, "save", STOP)
    assert place(after, "note", 10) < place(after, "write", 9)


def test_the_clock_measures_only_steps(runs):
    """Rule 7."""
    for calls in runs[:2]:
        runs_now, steps = False, 0
        for name, _ in calls:
            if name == "note":
                assert runs_now or steps == 0
                steps += 1
            elif name in ("pause", "restart"):
                runs_now = name == "restart"
            elif name in ("weights", "sync", "save", "Stopped"):
                assert not runs_now


def test_every_process_polls_for_a_stop_once_per_step(runs):
    """Rule 8; tests/reliability/test_lost_processes.py has several processes."""
    asked = [[value for name, value in calls if name == "asked"] for calls in runs[:2]]
    assert asked == [list(range(1, STOP + 1)), list(range(STOP + 1, STEPS + 1))]


def test_a_resumed_run_drops_later_rows_first(runs):
    """Rule 2, at the start."""
    for calls, start in zip(runs[:2], (0, STOP), strict=True):
        assert place(calls, "begin", start) < min(number for number, (name, _) in enumerate(calls) if name == "write")


def test_a_run_that_another_start_has_finished_meanwhile_is_not_trained_again(runs, tmp_path, monkeypatch, capsys):
    workdir, config = tmp_path / "run", tiny_run_config(runs[2].parent / "data.npz")
    shutil.copytree(runs[2], workdir)
    results = (workdir / "results.json").rename(workdir / "later")

    def meanwhile(*arguments):
        results.rename(workdir / "results.json")
        return build_run(*arguments)

    monkeypatch.setattr(loop, "build_run", meanwhile)
    assert loop.train(config, workdir)["step"] == STEPS
    printed = capsys.readouterr().out
    assert f"has finished config.train.max_steps={STEPS}" in printed.replace("\n", " ") and "Training in" not in printed


def test_a_run_that_another_start_has_trained_further_meanwhile_is_refused(runs, tmp_path, monkeypatch):
    workdir, config = tmp_path / "run", tiny_run_config(runs[2].parent / "data.npz")
    config.train.max_steps = STEPS - 1
    opened = open_run(config, workdir)
    shutil.copytree(runs[2], workdir)
    with pytest.raises(ConfigError, match=rf"is already at step {STEPS}, after config.train.max_steps={STEPS - 1}"):
        loop.train(config, workdir, opened=opened)
