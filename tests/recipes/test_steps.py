"""Runs small versions of the programs of the paper's configurations."""

import json
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.modes.teacher import load_teacher
from deit_jax.modes.train import train
from deit_jax.parallel.mesh import make_mesh
from deit_jax.training.optimizer import parameter_names
from deit_jax.training.plan import resolve
from deit_jax.training.program import build_program
from tests.fewer_devices import fewer_devices

from .programs import ARGUMENTS, augmentation_key, get_config, program_key, shrink


def distinct(names):
    """Returns one argument of each kind of program and of each augmentation, which comes first and is the same for all kinds."""
    kinds, augmentations, found = set(), set(), []
    for name in names:
        config = shrink(get_config(name))
        kind, augmentation = program_key(config, sizes=False), augmentation_key(config)
        if kind not in kinds or augmentation not in augmentations:
            found.append(name)
        kinds.add(kind)
        augmentations.add(augmentation)
    return found


# With the whole trainer: data, evaluation and checkpoints too.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("distillation:token_labels,base", marks=pytest.mark.long),
        pytest.param("finetune:384px,sgd", marks=pytest.mark.long),
        pytest.param("finetune:384px,distilled", marks=pytest.mark.long),
        pytest.param("teacher:regnety_160,384px", marks=pytest.mark.long),
        pytest.param("deit:vit_base", marks=pytest.mark.long),
    ],
)
def test_two_steps_of_a_run(name, tmp_path):
    with fewer_devices():  # so that the program is one of those below
        results = train(shrink(get_config(name)), tmp_path)
    assert results["step"] == 2
    losses = [json.loads(line)["train/loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
              if "train/loss" in line]  # fmt: skip
    assert len(losses) == 2 and np.isfinite(losses).all()


@pytest.mark.long
@pytest.mark.parametrize("name", distinct(ARGUMENTS))
def test_two_steps_of_every_kind_of_program_and_of_augmentation(name):
    config = shrink(get_config(name))
    mesh = make_mesh(jax.devices()[:1])
    plan = resolve(config, num_images=10_000, data_classes=10)
    teacher = load_teacher(config, Path(tempfile.gettempdir()))  # random weights: nothing is read
    program = build_program(config, plan, mesh)
    state = program.init()
    before = jax.tree.map(np.asarray, state.params)
    rng = np.random.default_rng(0)
    for _ in range(2):
        batch = {
            "image": jnp.asarray(rng.integers(0, 256, (16, 28, 28, 3), np.uint8)),
            "label": jnp.asarray(rng.integers(0, 10, 16), jnp.int32),
        }
        state, metrics = program.train_step(state, None if teacher is None else teacher.for_step(mesh), batch)
        assert np.isfinite(metrics["loss"])
    assert int(state.step) == 2
    moved = {
        parameter
        for parameter, old, new in zip(
            parameter_names(before), jax.tree.leaves(before), jax.tree.leaves(state.params), strict=True
        )
        if (old != np.asarray(new)).any()
    }
    assert any(parameter.startswith("head") for parameter in moved)
    if config.optimizer.trainable == (".*",):
        assert any("patch_embed" in parameter or "stem" in parameter for parameter in moved)
    assert all(any(re.search(part, parameter) for part in config.optimizer.trainable) for parameter in moved)
    if config.model.name.startswith("regnet") and config.optimizer.trainable != (".*",):  # the 384-pixel teachers
        assert all(parameter.startswith(("head/", "s4/")) for parameter in moved)
