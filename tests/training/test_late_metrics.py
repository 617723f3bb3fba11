import math
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from deit_jax.training.divergence import DivergenceError, Watch
from deit_jax.training.late_metrics import LateMetrics

PLAN = SimpleNamespace(total_steps=5000, steps_per_epoch=100)


def metrics(loss=1.0):
    names = ("loss", "grad_norm", "worst_gradient", "nonfinite_gradients", "learning_rate")
    return {name: jnp.float32(loss if name == "loss" else 0.0) for name in names}


def late_metrics(log_every):
    """Returns LateMetrics, and the steps of the rows that it writes."""
    rows = []
    log = SimpleNamespace(write=lambda step, values: rows.append(step))
    return LateMetrics(PLAN, Watch("stop", ["one"], log.write), log, speed=None, log_every=log_every), rows


def test_a_row_is_written_after_the_next_step_or_when_settled():
    """Rule 6 of deit_jax/training/loop.py."""
    late, rows = late_metrics(log_every=2)
    for step, written in ((1, []), (2, [1]), (3, [1, 2]), (4, [1, 2])):
        late.note(step, metrics())
        assert rows == written
    with late.settled(4, jnp.zeros(())):
        assert rows == [1, 2, 4]


def test_the_line_of_a_step_has_the_parts_of_a_loss_with_a_teacher(capsys):
    late, _ = late_metrics(log_every=1)
    parts = {name: jnp.float32(0.5) for name in ("class_loss", "distillation_loss", "teacher_agreement")}
    late.note(1, metrics() | parts)
    with late.settled(1, jnp.zeros(())):
        assert "loss 1.0000 (class 0.500, teacher 0.500, agrees 50 %)  lr" in capsys.readouterr().out


def test_a_bad_step_is_detected_within_100_steps_without_logging():
    """Rule 6 of deit_jax/training/loop.py."""
    late, rows = late_metrics(log_every=1000)
    for step in range(1, 101):
        late.note(step, metrics(math.nan if step == 40 else 1.0))
    with pytest.raises(DivergenceError, match="step 40: the loss is nan"):
        late.note(101, metrics())
    assert rows == [1]


def test_a_bad_step_is_detected_before_its_state_is_used():
    """Rule 1 of deit_jax/training/loop.py."""
    late, _ = late_metrics(log_every=1000)
    late.note(1, metrics())
    late.note(2, metrics(math.inf))
    with pytest.raises(DivergenceError, match="step 2: the loss is inf"), late.settled(2, jnp.zeros(())):
        pytest.fail("the state of a bad step was used")
