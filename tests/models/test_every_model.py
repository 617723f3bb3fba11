"""Logits of every named model compared with timm's, for the same photographs and weights."""

import jax
import numpy as np
import pytest

from deit_jax.models import create_model, list_models

from .timm_names import model_images, our_name, our_variables, timm_tensor

LONG = (
    "deit_base_patch16_384",
    "deit_base_distilled_patch16_384",
    "regnety_004",
    "regnety_006",
    "regnety_008",
    "regnety_032",
    "regnety_040",
    "regnety_064",
    "regnety_080",
    "regnety_120",
    "regnety_160",
    "regnety_320",
)


def with_long(names):
    return [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in names]


@pytest.mark.parametrize("name", with_long(list_models()))
def test_logits_equal_timm(golden, timm_shapes, close, name):
    output = jax.device_get(jax.jit(create_model(name).apply)(our_variables(timm_shapes[name]), model_images(name)))
    # The golden logits are float64; PyTorch's float32 differs from them by 2e-7 to 6e-7.
    if "_distilled_" in name:
        for found, expected in zip(
            (output.class_logits, output.distillation_logits, output.logits), golden[name], strict=True
        ):
            close(found, expected, 3e-6)
    else:
        close(output.logits, golden[name], 3e-6)
        np.testing.assert_array_equal(output.class_logits, output.logits)
        assert output.distillation_logits is None


@pytest.mark.long
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "regnety_002"])
def test_logits_equal_installed_timm(close, name):
    """As above, with the installed timm of any version, in float64; skipped without timm."""
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    model = timm.create_model(name).eval()
    state = model.state_dict()
    for key, tensor in state.items():
        if our_name(key, tensor.ndim) is not None:
            state[key] = torch.from_numpy(timm_tensor(key, tuple(tensor.shape)))
    model.load_state_dict(state)
    images = model_images(name)
    with torch.no_grad():
        expected = model.double()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).double()).numpy()
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    output = jax.jit(create_model(name).apply)(our_variables(shapes), images)
    close(output.logits, expected, 3e-6)
