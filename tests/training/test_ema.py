"""The train step's moving average against timm's, fed with the same weights and BatchNorm statistics."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deit_jax.models import ModelOutput
from deit_jax.parallel.mesh import make_mesh
from deit_jax.training.losses import DistillationLoss
from deit_jax.training.state import init_state
from deit_jax.training.step import Training, make_train_step


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "training.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def given(golden):
    """Float32[21, ...]: the values before the first step and after each of 20 steps."""
    return {name.removeprefix("ema_given_"): values for name, values in golden.items() if name.startswith("ema_given_")}


class GivenStatistics(nn.Module):
    """A weight, and statistics that are set to the image's two rows of pixels, mean and variance."""

    given: dict

    @nn.compact
    def __call__(self, images, *, train=False, positions=None):
        weight = self.param("weight", lambda key: jnp.asarray(self.given["weight"][0]))
        for row, name in enumerate(("running_mean", "running_var")):
            statistic = self.variable("batch_stats", name, lambda name=name: jnp.asarray(self.given[name][0]))
            if train and not self.is_initializing():
                statistic.value = images[0, row, 0]
        logits = jnp.broadcast_to(weight.sum(), (images.shape[0], 2))
        return ModelOutput(logits, logits, None)


def reach(targets):
    """An optimizer whose step t sets the weight to targets[t + 1], for any gradient."""
    targets = jnp.asarray(targets)

    def update(gradients, step, params):
        return {"weight": targets[step + 1] - params["weight"]}, step + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


@pytest.mark.parametrize("decay", [0.9, 0.99996])
def test_ema_of_weights_and_statistics_matches_timm_after_every_step(golden, given, decay):
    model, optimizer = GivenStatistics(given), reach(given["weight"])

    def augment(key, images, labels, mesh, axis):
        return images, jnp.ones((len(images), 2)) / 2

    training = Training(
        model=model,
        augment=augment,
        loss=DistillationLoss(),
        optimizer=optimizer,
        schedule=lambda step: jnp.float32(0),
        seed=0,
        ema_decay=decay,
    )
    step = jax.jit(make_train_step(training, make_mesh(jax.devices()[:1])))
    state = init_state(model, optimizer, 0, 2, ema=True)
    for t in range(20):
        image = np.stack([given["running_mean"][t + 1], given["running_var"][t + 1]])[None, :, None]
        state, _ = step(state, None, {"image": np.repeat(image, 2, axis=2), "label": np.zeros(1, np.int32)})
        average = state.ema["params"] | state.ema["batch_stats"]
        assert average.keys() == given.keys()
        for name, values in average.items():
            np.testing.assert_array_equal(
                state.variables["params" if name == "weight" else "batch_stats"][name], given[name][t + 1]
            )
            for version in ("v2", "v3"):  # timm's ModelEmaV2 and V3: one formula, rounded in two orders
                expected = golden[f"ema_{version}_{decay:g}_{name}"][t]
                np.testing.assert_allclose(values, expected, rtol=0, atol=2e-6, err_msg=f"{version} {name} {t}")
    # The average is neither where it started nor where the weights are.
    assert np.abs(average["weight"] - given["weight"][0]).max() > 1e-4
    assert np.abs(average["weight"] - given["weight"][20]).max() > 0.1
