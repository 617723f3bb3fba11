"""The recipes on ImageNet that several files under configs/ vary: training, distilling, and fine-tuning at another resolution.

The numbers of Table 9 are in configs/deit.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from deit_jax.config import MUST_BE_GIVEN
from deit_jax.data.known_sets import imagenet_extra_sets
from deit_jax.recipes.location import load_own

SIZES = ("tiny", "small", "base")
EPOCHS = ("300", "500", "800", "1000")  # Figure 3
TRAIN_SIZES = ("160px", "224px", "320px", "384px")  # Table 10
# Table 2's teachers, by the words of configs/distillation.py.
TEACHERS = {
    "regnety_040": "regnety_040",
    "regnety_080": "regnety_080",
    "regnety_120": "regnety_120",
    "regnety_160": "regnety_160",
    "deit_base": "deit_base_patch16_224",
}


def deit(size: str, *, distilled: bool = False) -> ConfigDict:
    """configs/deit.py's recipe; `distilled`: with a distillation token, which nothing teaches yet (see `distil`)."""
    config: ConfigDict = load_own("deit").recipe(size, distilled=distilled)
    return config


def distil(config: ConfigDict, kind: str, teacher: str = "regnety_160") -> None:
    """Let one of TEACHERS teach, kind "soft" or "hard"; soft rows of the paper have alpha 0.1 and tau 3 (section 4)."""
    config.distillation.kind = kind
    if kind == "soft":
        config.distillation.alpha, config.distillation.tau = 0.1, 3.0
    config.teacher.name = TEACHERS[teacher]


def fine_tune(config: ConfigDict, image_size: int, optimizer: str = "adamw") -> None:
    """Turn a configuration for 224 pixels into its fine-tuning at another size, from weights that are given.

    The rates, batch and length are those of the released README (`--lr 5e-6 --min-lr 5e-6 --weight-decay 1e-8 --epochs 30`, 32
    images on each of 16 GPUs; the paper says 25 epochs), and the student runs in evaluation mode, as the released weights were
    fine-tuned. All else stays: augmentation, repeats and smoothing are those of pre-training, and a teacher goes on teaching, at
    the new size. With "sgd", whose settings are unknown, rate and decay are those that the authors named for transfer.

    The model keeps its name, which says 224: `model.weights=pretrained` then means the weights to start from, not those of the
    published 384-pixel model.
    """
    config.image_size = image_size
    config.model.weights = MUST_BE_GIVEN
    config.train.train_mode = False
    config.train.batch_size = 512
    config.train.epochs = 30
    config.augment.max_group_size = 32
    config.optimizer.name = optimizer
    if optimizer == "adamw":
        config.optimizer.weight_decay = 1e-8
        config.schedule.base_learning_rate = 5e-6
        config.schedule.min_learning_rate = 5e-6
    else:
        config.optimizer.weight_decay = 1e-4
        config.schedule.base_learning_rate = 0.01


def score_real_and_v2(config: ConfigDict) -> None:
    """Add Table 5's further evaluation sets, ImageNet ReaL and V2 (matched frequency), from TFDS."""
    with config.unlocked():
        config.evaluation.extra = imagenet_extra_sets()


def pixels(word: str) -> int:
    """384 of "384px"."""
    return int(word.removesuffix("px"))
