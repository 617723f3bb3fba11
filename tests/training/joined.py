"""64 steps with all random parts of the recipe: the training, its batches, and the recording of runs.

The student, teacher, optimizer and schedule of tests/training/trajectory.py, now with repeated and full augmentation: random
resized crops of small photographs, flip, RandAugment, erasing, mixup and CutMix, smoothed labels. Our side is the trainer's
own step, which draws all of it from the seed. The other side is given the images and targets that the recipe makes of the same
keys. Stochastic depth is off: two programs cannot share its draws.
"""

from __future__ import annotations

import functools
import zlib
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from deit_jax.data.decoding import RandomResizedCrop, decode
from deit_jax.data.loading import train_batches
from deit_jax.data.sources import ArraySource
from deit_jax.training.plan import Plan, resolve
from deit_jax.training.program import build_augmentation
from deit_jax.training.step import step_keys
from tests.tiny import paper_config
from tests.training import trajectory
from tests.training.trajectory import CLASSES, STUDENT, TEACHER, Arrays

GOLDEN_FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = GOLDEN_FOLDER / "joined.npz"
STEPS, IMAGES, SIDE = 64, 128, 96
KINDS = (*trajectory.KINDS, "none")
# Bounds a tensor's relative L2 distance after the last step and a loss's relative difference in any step. Measured: 8e-6, 4e-6.
BOUND = 3e-5
MODELS = {"none": "deit_tiny_patch16_224"}
SKETCH = 16  # numbers that represent a tensor


def config_of(kind: str) -> ConfigDict:
    """The published recipe of a kind of distillation, on 128 images in batches of 32; a group is 8 rows."""
    config = paper_config()
    config.image_size = 56
    config.compute_dtype = "float32"
    config.model.name = MODELS.get(kind, "deit_tiny_distilled_patch16_224")
    config.model.drop_path_rate = 0.0
    config.distillation.update({"kind": kind, **trajectory.KINDS.get(kind, {})})
    config.teacher.name = TEACHER
    config.augment.group_size = 8
    config.train.batch_size = 32
    config.train.epochs = 16
    config.schedule.base_batch_size = 16  # a peak of 1e-3, the paper's
    config.ema.decay = 0.99
    with config.unlocked():
        config.model.overrides = dict(STUDENT)
    return config


def photographs() -> ArraySource:
    """Returns squares of 96 pixels from three photographs, labeled in turn."""
    names = ("crops_china.jpg", "crops_flower.jpg", "models_photograph.png")
    photos = [decode((GOLDEN_FOLDER / name).read_bytes()) for name in names]
    rng = np.random.RandomState(0)
    squares = []
    for k in range(IMAGES):
        photo = photos[k % len(photos)]
        top, left = (rng.randint(side - SIDE + 1) for side in photo.shape[:2])
        squares.append(photo[top : top + SIDE, left : left + SIDE])
    labels = np.arange(IMAGES) % CLASSES
    return ArraySource(np.stack(squares), labels, tuple(f"class {k}" for k in range(CLASSES)))


def plan_of(config: ConfigDict) -> Plan:
    """Returns the plan for the configuration and the images."""
    plan = resolve(config, num_images=IMAGES, data_classes=CLASSES)
    assert plan.total_steps == STEPS, plan
    return plan


@functools.cache
def loaded() -> Arrays:
    """The loader's batches of all steps, the same for all kinds: image uint8[steps, B, 56, 56, 3], label int32[steps, B]."""
    config = config_of("none")
    plan = plan_of(config)
    crop = RandomResizedCrop(plan.image_size, tuple(config.data.crop_scale), tuple(config.data.crop_ratio))
    batches = list(train_batches(photographs(), plan.order, crop, start_step=0, stop_step=STEPS, num_threads=0))
    return {name: np.stack([batch[name] for batch in batches]) for name in ("image", "label")}


@functools.cache
def augmented() -> Arrays:
    """Returns the augmented batches: image float32[steps, B, 56, 56, 3], normalised, and target float32[steps, B, K]."""
    config = config_of("none")
    augment = jax.jit(build_augmentation(config, plan_of(config)))
    made = [
        augment(step_keys(config.seed, step)[0], image, label)
        for step, (image, label) in enumerate(zip(*loaded().values(), strict=True))
    ]
    images, targets = zip(*made, strict=True)
    return {"image": np.stack(images), "target": np.stack(targets)}


# --- Recorded runs -----------------------------------------------------------------------------------------------------------


def sketch(name: str, array: np.ndarray) -> np.ndarray:
    """Returns sums of the tensor's elements with random signs: float64[SKETCH].

    The mean square of two sketches' differences estimates the square of the tensors' L2 distance, within a third of it.
    """
    flat = trajectory.without_key_bias(name, array).ravel()
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    return np.array([flat @ rng.choice([-1.0, 1.0], flat.size) for _ in range(SKETCH)])


def recording(run: Arrays, kind: str) -> np.ndarray:
    """Returns the sketch and L2 norm of each tensor under `kind`/, in name order: float64[tensors, SKETCH + 1]."""
    rows = []
    for name in trajectory.names_of(run, kind):
        array = run[f"{kind}/{name}"]
        rows.append([*sketch(name, array), np.linalg.norm(trajectory.without_key_bias(name, array))])
    return np.array(rows)


def load_golden() -> Arrays:
    """PyTorch's runs in float64, see tests/golden/record_joined.py."""
    with np.load(GOLDEN) as file:
        return dict(file)


def recorded_distances(run: Arrays, kind: str, recorded: np.ndarray) -> dict[str, float]:
    """Estimates, per tensor under `kind`/, its L2 distance from the recorded run's, relative to that one's norm."""
    names = trajectory.names_of(run, kind)
    difference = recording(run, kind)[:, :SKETCH] - recorded[:, :SKETCH]
    relative = np.sqrt(np.mean(difference**2, 1)) / recorded[:, SKETCH]
    return dict(zip(names, relative.tolist(), strict=True))


def recorded_differences(run: Arrays, golden: Arrays, kind: str) -> dict[str, float]:
    """Returns the largest relative differences between our run and the recorded one of a kind of distillation."""
    theirs = {name.removeprefix(f"{kind}/"): value for name, value in golden.items() if name.startswith(f"{kind}/")}
    found = trajectory.loss_differences(run, theirs)
    found["learning_rate"] = float(np.max(np.abs(run["learning_rate"] / theirs["learning_rate"] - 1)))
    for tensors in ("params", "ema"):
        found[tensors] = max(recorded_distances(run, tensors, theirs[tensors]).values())
    return found


def batch_figures(given: Arrays) -> np.ndarray:
    """Returns mean and mean square of each step's images and targets, to check that a recorded run used the same."""
    axes = {name: tuple(range(1, given[name].ndim)) for name in ("image", "target")}
    columns = [np.mean(np.float64(given[name]) ** power, axes[name]) for name in axes for power in (1, 2)]
    return np.stack(columns, 1)
