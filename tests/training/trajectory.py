"""100 steps that are compared with PyTorch's: the training, our side of it, and the distances between two runs.

A small distilled DeiT learns from a frozen RegNetY-200MF and the embedded photographs: the paper's loss, optimizer and schedule
(25 epochs of 4 steps, released lag) and nothing random. The weights before the first step are given by a formula. A run is a
mapping: `loss`, `class_loss`, `distillation_loss`, `grad_norm` and `learning_rate` have a value a step; `params/<name>` and
`ema/<name>` are the tensors after the last step, by timm's names and in timm's (fused) layout.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from deit_jax.augment.color import normalize
from deit_jax.data.decoding import PaddedCrop
from deit_jax.data.loading import train_batches
from deit_jax.data.registry import open_source
from deit_jax.data.sources import Subset
from deit_jax.models import create_model
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.sharding import put_batch, replicated
from deit_jax.training import schedules
from deit_jax.training.plan import Plan, resolve
from deit_jax.training.program import build_program
from deit_jax.training.teacher import Teacher
from deit_jax.weights import timm
from tests.models.timm_names import timm_tensor
from tests.tiny import paper_config

GOLDEN = Path(__file__).parents[1] / "golden" / "trajectory.npz"
STEPS, IMAGES, CLASSES = 100, 128, 10
STUDENT = {"patch_size": 7, "embed_dim": 32, "depth": 3, "num_heads": 4}
TEACHER = "regnety_002"
# With the formula's own bias one class wins on all images. These move every class's mean logit over the images to 0, in
# 32nds, so that the teacher takes images for every class: by image size, of 28 pixels here and of 56 in joined.py.
TEACHER_BIASES = {
    28: (-0.21875, 1.90625, 5.5, -2.125, -1.21875, 5.03125, -3.78125, -0.0625, -0.4375, 2.09375),
    56: (0.0625, 3.0625, 4.0, -0.78125, -0.625, 3.625, -1.84375, 1.78125, -0.875, 0.71875),
}
KINDS = {"hard": {"alpha": 0.5, "tau": 1.0}, "soft": {"alpha": 0.1, "tau": 3.0}}  # the paper's
LOSSES = ("loss", "class_loss", "distillation_loss")
BOUND = 1e-3  # of a tensor's relative L2 distance after the last step, and of a loss's relative difference in any step

Arrays = dict[str, np.ndarray]


# --- What is trained ---------------------------------------------------------------------------------------------------------


def trajectory_config(kind: str) -> ConfigDict:
    """The published recipe without its random parts, on 128 images in batches of 32."""
    config = paper_config()
    config.image_size = 28
    config.compute_dtype = "float32"
    config.model.name = "deit_tiny_distilled_patch16_224"
    config.model.drop_path_rate = 0.0
    config.distillation.update({"kind": kind, **KINDS[kind]})
    config.teacher.name = TEACHER
    config.data.source = "fashion_mnist_10k"
    config.data.repeats = 1
    config.data.train_crop = "padded"
    config.data.crop_padding = 0
    config.data.num_threads = 0
    off = ("flip_probability", "erase_probability", "mixup_alpha", "cutmix_alpha", "mix_probability")
    config.augment.update({name: 0.0 for name in off} | {"rand_augment": "", "group_size": 8})
    config.train.batch_size = 32
    config.train.epochs = 25
    config.schedule.base_batch_size = 16  # a peak of 1e-3, the paper's
    config.ema.decay = 0.99
    with config.unlocked():
        config.model.overrides = dict(STUDENT)
    return config


def plan_and_batches(config: ConfigDict) -> tuple[Plan, Arrays]:
    """The plan and the loader's batches of all steps: image uint8[steps, B, 28, 28, 3], label int32[steps, B]."""
    source = Subset(open_source(config.data, "train"), np.arange(IMAGES))
    plan = resolve(config, num_images=IMAGES, data_classes=CLASSES)
    assert plan.total_steps == STEPS, plan
    crop = PaddedCrop(plan.image_size, config.data.crop_padding)
    batches = list(train_batches(source, plan.order, crop, start_step=0, stop_step=STEPS, num_threads=0))
    return plan, {name: np.stack([batch[name] for batch in batches]) for name in ("image", "label")}


def checksum(batches: Arrays) -> int:
    """Returns the CRC-32 of the batches, to check that a recorded run used the same."""
    return zlib.crc32(batches["label"].tobytes(), zlib.crc32(batches["image"].tobytes()))


def initial_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The student's float32 tensor behind a name of timm's before the first step: DeiT's initialisation by formula.

    Biases 0, LayerNorm scales 1, the patch convolution U(+-1/sqrt(fan_in)), all else of standard deviation 0.02 (uniform,
    seeded by the name).
    """
    if name.startswith("patch_embed.proj"):
        bound = (STUDENT["patch_size"] ** 2 * 3) ** -0.5
    elif name.endswith("bias"):
        bound = 0.0
    elif "norm" in name:
        return np.ones(shape, np.float32)
    else:
        bound = 0.02 * 3**0.5
    return np.random.RandomState(zlib.crc32(name.encode())).uniform(-bound, bound, shape).astype(np.float32)


def initial_params(config: ConfigDict, plan: Plan) -> Any:
    """Returns the student's parameters before the first step."""
    model = create_model(config.model.name, CLASSES, plan.image_size, **config.model.overrides)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, plan.image_size, plan.image_size, 3)))
    return filled(shapes, initial_tensor)["params"]


def frozen_teacher(image_size: int, dtype: Any) -> Teacher:
    """RegNetY-200MF with weights by formula: those of tests/models, far from trivial, except for the head's bias."""

    def teacher_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.array(TEACHER_BIASES[image_size], np.float32) if name == "head.fc.bias" else timm_tensor(name, shape)

    model = create_model(TEACHER, CLASSES, dtype=dtype)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, image_size, image_size, 3)))
    variables = filled(shapes, teacher_tensor)
    return Teacher(model, jax.tree.map(lambda leaf: leaf.astype(dtype), variables), "weights by formula")


# --- timm's names ------------------------------------------------------------------------------------------------------------


def to_timm(params: Any, batch_stats: Any = None) -> Arrays:
    """Our parameters and BatchNorm statistics by timm's names, in timm's layout and in their own type."""
    variables = {"params": params} | ({"batch_stats": batch_stats} if batch_stats else {})
    tensors = timm.from_variables(jax.device_get(variables), dtype=None)
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def filled(shapes: Any, formula: Callable[[str, tuple[int, ...]], np.ndarray]) -> Any:
    """Variables of ours (given as leaves that have a shape), their tensors written by a formula of timm's name and shape."""
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    return timm.to_variables({name: formula(name, like.shape) for name, like in timm.from_variables(zeros).items()})


# --- Our side ----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Runs the package in float64, also where it uses float32 explicitly (statistics, softmax, logits, rates)."""
    numpy = types.SimpleNamespace(**(vars(np) | {"float32": np.float64}))
    with (
        jax.enable_x64(True),
        mock.patch.object(jnp, "float32", jnp.float64),
        mock.patch.object(schedules, "np", numpy),
    ):
        yield


def run_ours(config: ConfigDict, plan: Plan, batches: Arrays, dtype: str = "float32") -> Arrays:
    """All steps through the trainer's own step; the keys of the peer's output, and `start/<name>`, the initial weights."""
    plan = dataclasses.replace(plan, compute_dtype=dtype)
    mesh = make_mesh(jax.devices()[:1])
    teacher = None if config.distillation.kind == "none" else frozen_teacher(plan.image_size, dtype)
    program = build_program(config, plan, mesh)
    params = initial_params(config, plan)
    # As `program.init` leaves it, which would compile for longer: everything 0 save the weights and their moving average.
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), program.abstract_state)
    state = state.replace(params=params, ema={"params": params, "batch_stats": {}})
    state = jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf, state)
    state = jax.tree.map(jnp.array, jax.device_put(state, replicated(mesh)))  # copies: the state is donated
    frozen = None if teacher is None else jax.device_put(teacher.for_step(mesh), replicated(mesh))

    history: dict[str, list] = {}
    for step in range(len(batches["image"])):
        batch = put_batch(mesh, {name: array[step] for name, array in batches.items()})
        state, metrics = program.train_step(state, frozen, batch)
        for name, value in metrics.items():
            history.setdefault(name, []).append(np.asarray(value))
    results = {name: np.asarray(values) for name, values in history.items()}
    results |= {f"start/{name}": value for name, value in to_timm(params).items()}
    results |= {f"params/{name}": value for name, value in to_timm(state.params).items()}
    results |= {f"ema/{name}": value for name, value in to_timm(state.ema["params"]).items()}
    assert {value.dtype.name for name, value in results.items() if name.startswith(("params/", "ema/"))} == {dtype}
    return results


def first_epoch(config: ConfigDict, plan: Plan, batches: Arrays) -> np.ndarray:
    """The first epoch's images, which are all of them, normalised: float32[steps, B, H, W, 3]."""
    mean, std = config.augment.mean, config.augment.std
    return np.stack([normalize(images, mean, std) for images in batches["image"][: plan.steps_per_epoch]])


def teacher_logits(images: np.ndarray) -> np.ndarray:
    """Our teacher's logits for the normalised images of several steps, float32[steps, B, H, W, 3]: float32[steps, B, K]."""
    teacher = frozen_teacher(images.shape[2], "float32")
    answer = jax.jit(lambda images: teacher.model.apply(teacher.variables, images, train=False).logits)
    return np.stack([answer(batch) for batch in images])


# --- Comparison --------------------------------------------------------------------------------------------------------------


def load_golden() -> Arrays:
    """The recorded run of PyTorch's side, see tests/golden/record_trajectory.py."""
    with np.load(GOLDEN) as file:
        return dict(file)


def names_of(run: Arrays, kind: str = "params") -> list[str]:
    """timm's names of the tensors under `kind`/ in a run."""
    return sorted(key.removeprefix(f"{kind}/") for key in run if key.startswith(f"{kind}/"))


def without_key_bias(name: str, array: np.ndarray) -> np.ndarray:
    """A tensor as float64, of a fused qkv bias only the query's and the value's third.

    Adding a constant to all keys adds the same to all scores of a row, which softmax takes no notice of: the true gradient of
    the key's bias is zero, and AdamW makes steps of up to the learning rate out of its rounding errors.
    """
    array = np.asarray(array, np.float64)
    if not name.endswith("qkv.bias"):
        return array
    query, _, value = np.split(array, 3)
    return np.concatenate([query, value])


def distances(one: Arrays, other: Arrays, kind: str = "params", start: Arrays | None = None) -> dict[str, float]:
    """Per tensor, the L2 distance of `one` from `other`, relative to the length of `other`.

    With `start`, a run that holds `start/<name>`, relative to how far `other` is from there.
    """
    result = {}
    for name in names_of(one, kind):
        a, b = (without_key_bias(name, run[f"{kind}/{name}"]) for run in (one, other))
        origin = 0.0 if start is None else without_key_bias(name, start[f"start/{name}"])
        result[name] = float(np.linalg.norm(a - b) / np.linalg.norm(b - origin))
    return result


def key_bias_difference(one: Arrays, other: Arrays, kind: str = "params") -> float:
    """The largest absolute difference of an element of a key's bias."""
    names = [name for name in names_of(one, kind) if name.endswith("qkv.bias")]
    keys = [tuple(np.split(run[f"{kind}/{name}"], 3)[1] for run in (one, other)) for name in names]
    return max(float(np.abs(np.float64(a) - b).max()) for a, b in keys)


def loss_differences(one: Arrays, other: Arrays) -> dict[str, float]:
    """The largest relative difference of each loss that there is, and of the gradient's norm, over the steps."""
    names = [name for name in (*LOSSES, "grad_norm") if name in one and name in other]
    return {name: float(np.max(np.abs(np.float64(one[name]) / other[name] - 1))) for name in names}


def margins(logits: np.ndarray) -> np.ndarray:
    """How far the largest logit is above the second, [..., K] to [...]."""
    ordered = np.sort(logits, axis=-1)
    return ordered[..., -1] - ordered[..., -2]
