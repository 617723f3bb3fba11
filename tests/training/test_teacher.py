import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.models import create_model
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.sharding import replicated
from deit_jax.training.teacher import FrozenTeacher, freeze
from tests.tiny import TEACHER

IMAGES = np.random.default_rng(0).normal(size=(2, 28, 28, 3)).astype(np.float32)


def test_a_step_is_compiled_for_the_teachers_model_and_not_for_its_weights():
    model = create_model("regnety_002", 10, 28, **TEACHER)
    mesh, init = make_mesh(jax.devices()[:1]), jax.jit(model.init)
    one, other = (
        jax.device_put(
            freeze(model, init(jax.random.key(seed), IMAGES), "", compute_dtype="float32").for_step(mesh),
            replicated(mesh),
        )
        for seed in range(2)
    )
    assert len(jax.tree.leaves(one)) == len(jax.tree.leaves(one.variables)) and one.model.grouped_conv == "packed"
    ask = jax.jit(lambda teacher, images: teacher.logits(images))
    logits = ask(one, IMAGES)
    assert logits.shape == (2, 10) and logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, jax.jit(one.model.apply)(one.variables, IMAGES).logits, rtol=1e-5, atol=1e-6)
    assert np.abs(ask(other, IMAGES) - logits).max() > 1e-4
    assert ask._cache_size() == 1
    ask(FrozenTeacher(one.model.clone(grouped_conv="native"), one.variables), IMAGES)
    assert ask._cache_size() == 2
