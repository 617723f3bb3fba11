"""Non-finite losses, from a teacher with non-finite logits for one image."""

import json
import math
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.errors import UserError
from deit_jax.reporting.run_log import read_metrics
from deit_jax.training.checkpointing import load_state
from deit_jax.training.divergence import Detours, DivergenceError, Rollback, Watch
from deit_jax.training.loop import train
from deit_jax.training.record import read_config
from deit_jax.training.teacher import Teacher
from tests.bucket_server import address, server
from tests.tiny import STUDENT, tiny_config

IMAGES, BATCH = 64, 8  # eight steps per epoch; one has the white image


class AllergicToWhite(nn.Module):
    """Returns uniform logits [B, 10], or NaN if one of the images is white."""

    @nn.compact
    def __call__(self, images, train=False):
        from deit_jax.models.protocol import ModelOutput

        white = jnp.any(jnp.min(images, axis=(1, 2, 3)) > 1.9)
        zeros = jnp.zeros((images.shape[0], 10))
        logits = jnp.where(white, jnp.nan, zeros) + self.param("nothing", nn.initializers.zeros, (10,))
        return ModelOutput(logits=logits, class_logits=logits, distillation_logits=None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (IMAGES, 28, 28), dtype=np.uint8)
    images[17] = 255
    labels = np.arange(IMAGES) % 10
    path = tmp_path_factory.mktemp("data") / "white.npz"
    names = [str(number) for number in range(10)]
    few = {"test_images": images[:16], "test_labels": labels[:16]}
    np.savez(path, train_images=images, train_labels=labels, class_names=names, **few)
    return path


def run(data, workdir, on_nonfinite, steps=24, **changes):
    config = tiny_config(
        on_nonfinite=on_nonfinite, data__source="npz", data__path=str(data), data__repeats=1, data__crop_padding=0,
        data__max_eval_images=16, train__batch_size=BATCH, augment__group_size=4, augment__groups_per_block=2,
        augment__erase_probability=0.0, augment__mixup_alpha=0.0, augment__cutmix_alpha=0.0, train__max_steps=steps,
        distillation__kind="soft", evaluation__batch_size=16, evaluation__every_epochs=0, evaluation__teacher=False,
        checkpoint__every_steps=3, log__every_steps=2, model__name="deit_tiny_patch16_224", ema__decay=0.0, **changes,
    )  # fmt: skip
    with config.unlocked():
        config.model.overrides = STUDENT | {"depth": 1}
    model = AllergicToWhite()
    teacher = Teacher(model, {"params": {"nothing": jnp.zeros(10)}}, "allergic to white")
    return train(config, workdir, teacher)


def bits(workdir):
    state, step = load_state(workdir)
    return step, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def losses(workdir):
    return [(row["step"], row["train/loss"]) for row in read_metrics(workdir) if "train/loss" in row]


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
    """(workdir, the error) of a run that stops at the white image, in some step of the first epoch."""
    workdir = tmp_path_factory.mktemp("stopped")
    with pytest.raises(DivergenceError) as error:
        run(data, workdir, "stop")
    return workdir, str(error.value)


def bad_step(line):
    return int(line.removeprefix("step ").partition(":")[0])


def test_stop_names_the_step_and_saves_nothing_bad(stopped):
    """Rule 1 of deit_jax/training/loop.py."""
    workdir, line = stopped
    step = bad_step(line)
    assert 1 <= step <= IMAGES // BATCH
    assert f"step {step}: the loss is nan and the gradient norm nan; the gradients of" in line
    assert "parameters are not finite, first blocks_0/" in line and "on_nonfinite=skip" in line and "\n" not in line
    assert DivergenceError.exit_status == 3
    saved = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    assert all(number < step for number in saved)
    # Only on_nonfinite has changed: the run resumes in the same workdir.
    assert read_config(workdir)["config"]["on_nonfinite"] == "stop"


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_stop_in_a_bucket_keeps_the_rows(data, stopped, scheme):
    with server(scheme), pytest.raises(DivergenceError):
        place = address("stopped", scheme)
        try:
            run(data, place, "stop")
        finally:
            assert losses(place) == losses(stopped[0])
            assert max(load_state(place)[1], 0) < losses(place)[-1][0]  # they are not only those of a save


def test_skipped_steps_change_nothing(data, stopped, tmp_path):
    results = run(data, tmp_path / "whole", "skip")
    assert results["skipped_steps"] == 3 and results["rollbacks"] == 0  # once per epoch
    step, leaves = bits(tmp_path / "whole")
    assert step == 24 and all(np.isfinite(np.frombuffer(leaf, np.float32)).all() for leaf in leaves[:-1])
    rows = [row for row in read_metrics(tmp_path / "whole") if "nonfinite/loss" in row]
    assert rows[0]["step"] == bad_step(stopped[1]) and math.isnan(rows[0]["nonfinite/loss"])


@pytest.mark.long
def test_skipped_steps_are_skipped_again_by_a_resumed_run(data, tmp_path):
    """Rule 2 of deit_jax/training/loop.py: their rows are counted once."""
    run(data, tmp_path / "whole", "skip")
    for steps in (5, 14, 24):
        results = run(data, tmp_path / "parts", "skip", steps=steps)
    assert results["skipped_steps"] == 3 and bits(tmp_path / "parts") == bits(tmp_path / "whole")


@pytest.fixture(scope="module")
def rolled_back(data, tmp_path_factory):
    """(workdir, results) of a run that returns to its last checkpoint at the white image."""
    workdir = tmp_path_factory.mktemp("rolled_back")
    return workdir, run(data, workdir, "rollback")


def test_a_rollback_uses_other_data(stopped, rolled_back):
    """Rules 1 and 4 of deit_jax/training/loop.py: it returns to a sound and complete checkpoint."""
    workdir, results = rolled_back
    assert results["rollbacks"] >= 2 and results["skipped_steps"] == 0
    detours = json.loads((workdir / "rollbacks.json").read_text())
    assert detours[0]["bad"] == bad_step(stopped[1]) and detours[0]["after"] == (detours[0]["bad"] - 1) // 3 * 3
    found = losses(workdir)
    assert [step for step, _ in found] == [1, *range(2, 25, 2)] and all(math.isfinite(loss) for _, loss in found)


def test_a_run_that_lost_its_rollbacks_is_refused(data, rolled_back, tmp_path):
    shutil.copytree(rolled_back[0], tmp_path / "copy")
    (tmp_path / "copy/rollbacks.json").unlink()
    with pytest.raises(UserError, match=rf"lacks some of the run's {rolled_back[1]['rollbacks']} rollbacks"):
        run(data, tmp_path / "copy", "rollback", steps=25)


@pytest.mark.long
def test_a_rollback_is_repeated_by_a_resumed_run(data, rolled_back, tmp_path):
    """Rule 5 of deit_jax/training/loop.py."""
    for steps in (10, 24):
        run(data, tmp_path, "rollback", steps=steps)
    assert bits(tmp_path) == bits(rolled_back[0])
    assert set(losses(rolled_back[0])) <= set(losses(tmp_path))


def test_the_data_of_a_rollback_is_skipped_once(tmp_path):
    """Rule 5 of deit_jax/training/loop.py."""
    detours = Detours(tmp_path)
    assert detours.stretches(0, 10) == [(0, 10)]
    detours.add(Rollback(8, ""), 6, write=True)
    detours.add(Rollback(13, ""), 12, write=True)
    again = Detours(tmp_path)  # batches 6, 7 and 14, counted from 0, are skipped
    assert again.stretches(0, 20) == [(0, 6), (8, 14), (15, 23)]
    assert again.stretches(12, 20) == [(15, 23)] and again.stretches(6, 7) == [(8, 9)] and again.stretches(20, 20) == []
    assert len(Detours(tmp_path, at_least=2)) == 2
    with pytest.raises(
        UserError, match=r"/rollbacks\.json is missing, or lacks some of the run's 3 rollbacks: .*restore"
    ):
        Detours(tmp_path, at_least=3)
    text = '[{"after": "6", "bad": 8, "batches": 2}]'
    for damaged in ('[{"after": 6', text, '{"after": "1"}', "[5]", "[null]", "null", "7"):
        (tmp_path / "rollbacks.json").write_text(damaged)
        with pytest.raises(UserError, match=r"rollbacks\.json is damaged"):
            Detours(tmp_path)
    with pytest.raises(DivergenceError, match="giving up"):
        for _ in range(100):
            detours.add(Rollback(30, "step 30"), 29, write=False)


def test_steps_are_judged_in_order_up_to_the_given_one():
    """Rules 1 and 6 of deit_jax/training/loop.py."""

    def metrics(loss):
        values = {
            "loss": loss,
            "grad_norm": 1.0,
            "worst_gradient": 1.0,
            "nonfinite_gradients": 0.0,
            "learning_rate": 1.0,
        }
        return {name: jnp.float32(value) for name, value in values.items()}

    rows = []
    watch = Watch("skip", ["one", "two"], lambda step, values: rows.append(step))
    for step, loss in enumerate([1.0, math.inf, 1.0, math.nan], 1):
        assert set(watch.note(step, metrics(loss))) == {"loss", "grad_norm", "learning_rate"}
    watch.read(through=3)
    assert rows == [2]
    watch.read(through=4)
    assert rows == [2, 4]
    for step in range(5, 100):
        watch.note(step, metrics(math.nan))
    with pytest.raises(
        DivergenceError, match=r"step 53: the loss is nan.* largest gradient is that of two; 50 steps in a row"
    ):
        watch.read(through=99)
