"""ImageNet recipes shared by files under configs/: training, distillation, fine-tuning at another resolution, a local trial.

The numbers of Table 9 are in configs/deit.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from deit_jax.config import MUST_BE_GIVEN, listed_names, needs_teacher
from deit_jax.data.known_sets import imagenet_extra_sets
from deit_jax.recipes.files import load_own

SIZES = ("tiny", "small", "base")
EPOCHS = ("300", "500", "800", "1000")  # Figure 3
TRAIN_SIZES = ("160px", "224px", "320px", "384px")  # Table 10
# Table 2's teachers, by the names in configs/distillation.py.
TEACHERS = {
    "regnety_040": "regnety_040",
    "regnety_080": "regnety_080",
    "regnety_120": "regnety_120",
    "regnety_160": "regnety_160",
    "deit_base": "deit_base_patch16_224",
}


def deit(size: str, *, distilled: bool = False) -> ConfigDict:
    """Returns the recipe of configs/deit.py. distilled: add a distillation token, still without a teacher (see `distil`)."""
    config: ConfigDict = load_own("deit").recipe(size, distilled=distilled)
    return config


def distil(config: ConfigDict, kind: str, teacher: str = "regnety_160") -> None:
    """Adds one of TEACHERS, with kind "soft" or "hard"; the paper's soft rows have alpha 0.1 and tau 3 (section 4)."""
    config.distillation.kind = kind
    if kind == "soft":
        config.distillation.alpha, config.distillation.tau = 0.1, 3.0
    config.teacher.name = TEACHERS[teacher]


def fine_tune(config: ConfigDict, image_size: int, optimizer: str = "adamw") -> None:
    """Changes a configuration for 224 pixels to fine-tuning at another size, from given weights.

    Rates, batch and length are those of the released README (`--lr 5e-6 --min-lr 5e-6 --weight-decay 1e-8 --epochs 30`, 32 images
    on each of 16 GPUs; the paper says 25 epochs). The student runs in evaluation mode, as in the fine-tuning of the released
    weights. Augmentation, repeats, smoothing and the teacher stay as in pre-training, at the new size. "sgd", whose settings are
    unknown, uses the rate and decay that the authors gave for transfer.

    The model keeps its name with 224: `model.weights=pretrained` means the weights to start from, not those of the published
    384-pixel model.
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
    """Adds Table 5's extra evaluation sets, ImageNet ReaL and V2 (matched frequency), from TFDS."""
    with config.unlocked():
        config.evaluation.extra = imagenet_extra_sets()


def pixels(word: str) -> int:
    """Returns 384 for "384px"."""
    return int(word.removesuffix("px"))


def run_locally(config: ConfigDict) -> None:
    """Shrinks a configuration to two steps on embedded images, with unchanged modules and recipe, to test it locally."""
    config.data.source = "fashion_mnist_10k"
    config.data.train_split, config.data.eval_split = "train", "test"
    config.data.max_eval_images = 100
    config.train.batch_size = 16
    config.train.max_steps = 2
    config.augment.max_group_size = 4
    config.evaluation.batch_size = 48
    config.evaluation.extra = ConfigDict()
    config.evaluation.teacher = False
    config.log.every_steps = 1
    config.log.report = False
    config.log.images = False
    config.published = ConfigDict()
    config.model.weights = ""
    if needs_teacher(config):
        config.teacher.weights = ",".join("random" for _ in listed_names(config.teacher.name))
