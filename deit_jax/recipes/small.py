"""Small configurations: any recipe shrunk to two steps, and the settings for the embedded 28-pixel images."""

from __future__ import annotations

from ml_collections import ConfigDict

from deit_jax.config import default_config, listed_names, needs_teacher


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


def fashion_mnist() -> ConfigDict:
    """Returns the settings for embedded 28-pixel images on a CPU that configs/quickstart.py and configs/study.py share.

    Crops, flips, label smoothing and stochastic depth; without stronger augmentation, which needs more epochs.
    """
    config = default_config()
    config.image_size = 28
    config.data.source = "fashion_mnist_10k"
    config.data.train_crop = "padded"
    config.data.crop_padding = 1
    config.augment.label_smoothing = 0.1
    config.model.drop_path_rate = 0.1
    config.train.batch_size = 64
    config.optimizer.betas = (0.9, 0.99)
    config.optimizer.weight_decay = 0.05
    config.schedule.base_batch_size = 64
    config.schedule.warmup_epochs = 5.0
    config.schedule.min_learning_rate = 1e-5
    config.ema.decay = 0.99
    config.evaluation.batch_size = 500
    config.evaluation.crop_ratio = 1.0
    return config
