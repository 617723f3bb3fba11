import logging
import shutil

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.training import checkpointing
from deit_jax.training.checkpoint_folder import CheckpointError, has_checkpoints
from deit_jax.training.checkpointing import Checkpoints, load_state, load_variables
from deit_jax.training.state import TrainState


def make_state(step: int, width: int = 3, ema: bool = True) -> TrainState:
    params = {"head": {"kernel": jnp.full((2, width), float(step)), "bias": jnp.arange(width, dtype=jnp.float32)}}
    average = {"params": jax.tree.map(lambda x: x + 100, params), "batch_stats": {}} if ema else None
    opt_state = ({"count": jnp.int32(step), "mu": jax.tree.map(jnp.copy, params)}, ())
    return TrainState(step=jnp.int32(step), params=params, batch_stats={}, opt_state=opt_state, ema=average)


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_restores_the_whole_state_and_keeps_only_the_newest(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest_step() is None
        for step in (1, 2, 3):
            checkpoints.save(make_state(step))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest_step() == 3
        assert_equal(checkpoints.restore(jax.eval_shape(lambda: make_state(0))), make_state(3))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()} == {"2", "3"}


def test_other_loggers_and_orbax_errors_are_not_silenced(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(make_state(1))
        load_state(tmp_path)
        logging.getLogger("absl").info("said by another library")
        absl.logging.warning("said by another one")
        assert [record.message for record in caplog.records] == ["said by another library", "said by another one"]
        assert logging.getLogger("absl").level == logging.INFO


def test_a_state_that_is_donated_after_save_is_saved_whole(tmp_path):
    """Rule 9 of deit_jax/training/loop.py."""
    bump = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = bump(make_state(4))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        for _ in range(50):  # during the write
            state = bump(state)
    assert_equal(load_variables(tmp_path)[0]["params"], jax.tree.map(np.asarray, bump(make_state(4)).params))


def test_load_variables_needs_no_configuration(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(7))
    raw, step = load_variables(tmp_path)
    ema, _ = load_variables(tmp_path, "ema")
    assert step == 7
    assert_equal(raw["params"], jax.tree.map(np.asarray, make_state(7).params))
    np.testing.assert_array_equal(ema["params"]["head"]["kernel"], raw["params"]["head"]["kernel"] + 100)
    assert set(load_state(tmp_path)[0]) == {"step", "params", "batch_stats", "opt_state", "ema"}


def test_missing_and_mismatched_checkpoints_raise(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        load_variables(tmp_path / "nowhere")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError, match="no checkpoint here"):
        checkpoints.restore(jax.eval_shape(lambda: make_state(0)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1, ema=False))
    with pytest.raises(CheckpointError, match="no moving average"):
        load_variables(tmp_path, "ema")
    with pytest.raises(CheckpointError, match=r"^which='EMA' is none of raw, ema; the nearest is 'ema'$"):
        load_variables(tmp_path, "EMA")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(CheckpointError, match="does not hold this configuration's state"),
    ):
        checkpoints.restore(jax.eval_shape(lambda: make_state(0, width=5)))


def test_loads_the_newest_best_or_given_checkpoint(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, top1 in ((1, 20.0), (2, 50.0), (3, None), (4, 30.0)):
            checkpoints.save(make_state(step), top1)
    assert load_state(tmp_path)[1] == 4
    state, step = load_state(tmp_path, "best")
    assert step == 2 and int(state["step"]) == 2
    assert load_variables(tmp_path, "ema", "3")[0]["params"]["head"]["kernel"][0, 0] == 103
    for wrong, message in (
        ("1", r"of step 1 here \(there are: 2, 3, 4\)"),
        ("last", "is not newest, best or a step number"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_state(tmp_path, wrong)
    # Another one must not be used instead.
    kernel = max((tmp_path / "checkpoints" / "2").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    kernel.write_bytes(kernel.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"checkpoint 2 is DAMAGED: .*; use another"):
        load_state(tmp_path, "best")


def test_without_an_evaluation_there_is_no_best_checkpoint(tmp_path):
    assert not has_checkpoints(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1))
    assert has_checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match="there is no best one; use the newest"):
        load_state(tmp_path, "best")


def test_best_compares_only_scores_of_the_same_evaluation(tmp_path, capsys):
    few, many = {"images": 10, "digest": "a"}, {"images": 90, "digest": "b"}
    with Checkpoints(tmp_path, keep=9, scored_by=few) as checkpoints:
        for step, top1 in ((1, 70.0), (2, 99.0), (3, None)):
            checkpoints.save(make_state(step), top1)
        assert checkpoints.best() == (2, 99.0)
    capsys.readouterr()
    with Checkpoints(tmp_path, keep=9, scored_by=many) as checkpoints:
        output = "checkpoint 1, 2: scored on other evaluation images or crops, not compared with later ones"
        assert output in " ".join(capsys.readouterr().out.split())
        assert checkpoints.best() is None and checkpoints.would_be_best(1.0)
        checkpoints.save(make_state(4), 50.0)
        checkpoints.save(make_state(5), 40.0)
    assert load_state(tmp_path, "best")[1] == 4
    assert "checkpoint 1, 2: scored" in " ".join(capsys.readouterr().out.split())
    with Checkpoints(tmp_path, keep=1, scored_by=many):
        pass  # removes old checkpoints except the best of this evaluation
    assert {path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()} == {"4", "5"}


def test_checkpoints_without_a_recorded_evaluation_are_compared(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1), 70.0)
    with Checkpoints(tmp_path, scored_by={"images": 10}) as checkpoints:
        assert checkpoints.best() == (1, 70.0)


@pytest.mark.parametrize("which", ["newest", "best"])
def test_if_a_checkpoint_is_deleted_while_read_the_next_one_is_loaded(tmp_path, monkeypatch, capsys, which):
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(make_state(step), float(step))
    read, gone = checkpointing._read, []

    def delete_first(path):
        if len(gone) < 2:
            gone.append(path.parent.name)
            shutil.rmtree(path.parent)
        return read(path)

    monkeypatch.setattr(checkpointing, "_read", delete_first)
    state, step = load_state(tmp_path, which)
    assert (step, gone) == (1, ["3", "2"]) and int(state["step"]) == 1
    assert "DAMAGED" not in capsys.readouterr().out


def test_if_a_given_step_is_deleted_while_read_one_line_is_raised(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1))
        checkpoints.save(make_state(2))
    monkeypatch.setattr(checkpointing, "_read", lambda path: shutil.rmtree(path.parent) or {}["gone"])
    with pytest.raises(CheckpointError, match=r"no complete checkpoint of step 2 here \(there are: 1\)"):
        load_state(tmp_path, "2")
    monkeypatch.setattr(checkpointing, "_read", lambda path: {}["another fault"])
    with pytest.raises(KeyError):
        load_state(tmp_path)
