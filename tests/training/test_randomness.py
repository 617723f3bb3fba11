"""The randomness of a train step: separate keys for augmentation and model, derived from the seed and the step."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from deit_jax.models import ModelOutput
from deit_jax.parallel.mesh import make_mesh
from deit_jax.training.state import init_state
from deit_jax.training.step import Training, make_train_step


class Draws(nn.Module):
    """Its first logit is the image, its second a random number."""

    @nn.compact
    def __call__(self, images, *, train=False, positions=None):
        drawn = jax.random.uniform(self.make_rng("dropout")) if train else 0.0
        weight = self.param("weight", nn.initializers.zeros, ())
        logits = jnp.stack([images[:, 0, 0, 0], jnp.full(len(images), drawn)], axis=1) + weight
        return ModelOutput(logits, logits, None)


def augment(key, images, labels, mesh, axis):
    return jnp.full(images.shape, jax.random.uniform(key)), jnp.ones((len(images), 2)) / 2


def loss(outputs, targets, teacher_logits):
    recipe, model = outputs.logits[0]
    return model, {"loss": model, "recipe": recipe, "model": model}


def drawn(seed, steps=3):
    """Returns the random numbers of augmentation and model in each step, for the same batch: float32[steps, 2]."""
    model, optimizer = Draws(), optax.sgd(0.0)
    training = Training(
        model=model,
        augment=augment,
        loss=loss,
        optimizer=optimizer,
        schedule=lambda step: jnp.float32(0),
        seed=seed,
    )
    train_step = make_train_step(training, make_mesh(jax.devices()[:1]))
    train_step, found = jax.jit(train_step), []
    state = init_state(model, optimizer, 0, 2, ema=False)
    for _ in range(steps):
        state, metrics = train_step(state, None, {"image": np.zeros((2, 2, 2, 3)), "label": np.zeros(2, np.int32)})
        found.append([metrics["recipe"], metrics["model"]])
    return np.array(found)


def test_randomness_derives_from_the_seed_and_the_step():
    first = drawn(0)
    np.testing.assert_array_equal(drawn(0), first)
    assert len(np.unique([first, drawn(1)])) == 12
