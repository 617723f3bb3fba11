"""What `build_program` makes of a configuration: the model's fields and the rate of every step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.parallel.mesh import make_mesh
from deit_jax.training.plan import resolve
from deit_jax.training.program import build_program
from tests.tiny import tiny_config

NO_TEACHER = {"distillation__kind": "none", "teacher__weights": ""}


def built(**changes):
    config = tiny_config(**NO_TEACHER, **changes)
    plan = resolve(config, num_images=10_000, data_classes=10)
    return build_program(config, plan, make_mesh(jax.devices()[:1])), plan


def test_the_model_has_the_configured_fields():
    fields = {
        "drop_path_rate": 0.3,
        "dropout_rate": 0.2,
        "fusion": "softmax",
        "attention": "dot_product",
        "remat": "full",
        "scan_blocks": True,
    }
    program, _ = built(**{f"model__{name}": value for name, value in fields.items()})
    assert {name: getattr(program.model, name) for name in fields} == fields


@pytest.mark.parametrize(("kind", "per_step"), [("released", False), ("plain", False), ("plain", True)])
def test_the_rate_follows_the_configured_schedule(kind, per_step):
    program, plan = built(schedule__kind=kind, schedule__per_step=per_step, schedule__base_learning_rate=0.5)
    # Only the rate is computed: the compiler drops the rest of the step.
    rate_of = jax.jit(lambda state, batch: program.train_step.__wrapped__(state, None, batch)[1]["learning_rate"])
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), program.abstract_state)
    batch = {"image": jnp.zeros((32, 28, 28, 3), jnp.uint8), "label": jnp.zeros(32, jnp.int32)}
    steps = np.array([0, 1, 311, 312, 313, 624, 700])
    rates = [rate_of(state.replace(step=jnp.int32(step)), batch) for step in steps]
    assert plan.steps_per_epoch == 312
    epochs = steps / 312 if per_step else steps // 312
    epochs = np.maximum(epochs - 1, 0) if kind == "released" else epochs
    np.testing.assert_allclose(rates, 1e-3 + epochs * (0.5 - 1e-3) / 5, rtol=1e-5)  # within the five epochs of warm-up
