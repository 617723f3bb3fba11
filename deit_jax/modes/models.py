"""--mode=models: the number of parameters and multiply-adds of every registered model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deit_jax import console
from deit_jax.config import ConfigError
from deit_jax.models import create_model, list_models, native_image_size
from deit_jax.models.flops import forward_flops_by_kind
from deit_jax.models.protocol import initial_variables
from deit_jax.storage.files import as_file, write_file
from deit_jax.training.state import count_parameters


class ModelSize(NamedTuple):
    """The size of a model with 1000 classes at its own image size. MACs are multiply-adds of one image's forward pass."""

    name: str
    image_size: int  # pixels
    parameters: int
    linear_macs: int  # linear layers and convolutions
    macs: int  # with the two matrix products of attention


def model_size(name: str) -> ModelSize:
    """Returns the size of a registered model, computed from shapes. Raises ValueError for an unknown name."""
    model, size = create_model(name), native_image_size(name)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    parameters = count_parameters(jax.eval_shape(functools.partial(initial_variables, model), jax.random.key(0), image))
    flops = forward_flops_by_kind(model, size)
    return ModelSize(name, size, parameters, (flops["convolution"] + flops["dense"]) // 2, sum(flops.values()) // 2)


def show_models(names: Sequence[str] | None = None, output: Path | None = None) -> list[ModelSize]:
    """Prints the sizes of the named models (None: all) and writes them to `output` as JSON, if given.

    Raises ConfigError if the file cannot be written.
    """
    sizes = [model_size(name) for name in names or list_models()]
    rows = [
        (it.name, str(it.image_size), f"{it.parameters:,}", f"{it.linear_macs / 1e9:.3f}", f"{it.macs / 1e9:.3f}")
        for it in sizes
    ]
    columns = ("model", "px", "parameters", "GMACs, linear + convolution", "with attention products")
    console.table("Models with 1000 classes; a MAC is a multiply-add: two FLOPs", columns, rows)
    if output is not None:
        write_file(output, as_file([it._asdict() for it in sizes]), ConfigError)
    return sizes
