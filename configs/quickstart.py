"""A convnet teacher, then a DeiT with a distillation token taught by it, on embedded real images (Fashion-MNIST, 10,000 of them).

python run.py --config=configs/quickstart.py --workdir=runs/quickstart
"""

from ml_collections import ConfigDict

from deit_jax.config import default_config


def teacher_config() -> ConfigDict:
    config = _common()
    config.model.name = "regnety_002"
    with config.unlocked():
        config.model.overrides = dict(w0=32, wa=32.0, wm=2.0, depth=4, group_width=32, stem_stride=1)
    config.model.drop_path_rate = 0.0
    config.train.epochs = 4
    config.optimizer.name = "sgd"
    config.optimizer.weight_decay = 5e-4
    config.schedule.base_learning_rate = 0.1
    config.schedule.base_batch_size = 128
    return config


def get_config(argument: str = "") -> ConfigDict:
    config = _common()
    config.model.name = "deit_tiny_distilled_patch16_224"
    with config.unlocked():
        config.model.overrides = dict(patch_size=4, embed_dim=128, depth=6, num_heads=4)
    config.train.epochs = 8
    config.schedule.base_learning_rate = 1e-3
    config.schedule.base_batch_size = 128
    config.distillation.kind = "hard"
    config.teacher.recipe = teacher_config()
    config.teacher.name = config.teacher.recipe.model.name
    return config


def _common() -> ConfigDict:
    config = default_config()
    config.image_size = 28
    config.data.source = "fashion_mnist_10k"
    config.data.train_crop = "padded"
    config.data.crop_padding = 2
    config.data.repeats = 1
    config.augment.rand_augment = ""
    config.augment.group_size = 32
    config.augment.mixup_alpha = 0.0
    config.augment.cutmix_alpha = 0.0
    config.train.batch_size = 128
    config.schedule.kind = "plain"
    config.schedule.per_step = True
    config.schedule.warmup_epochs = 1.0
    config.ema.decay = 0.99
    config.evaluation.batch_size = 500
    config.evaluation.crop_ratio = 1.0
    return config
