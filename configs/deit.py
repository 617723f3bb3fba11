"""DeiT trained from scratch on ImageNet-1k: the paper's recipe (arXiv 2012.12877, Table 9).

    python run.py --config=configs/deit.py:small --workdir=WORKDIR
    python run.py --config=configs/deit.py:small,distilled --workdir=WORKDIR --config.teacher.weights=TEACHER_WORKDIR

Argument: tiny | small | base, then any of
    distilled   add the distillation token, trained on the hard decisions of RegNetY-16GF (Table 3, last rows)
    soft        add the same token, trained by soft distillation with alpha 0.1 and tau 3 (section 4)
    500 | 800 | 1000        instead of 300 epochs (Figure 3; Table 5, last rows)
    160px | 320px | 384px   train at that size from the start; not in the paper, which fine-tunes (configs/finetune.py)
    runlocal    the same modules and recipe on the embedded images, two steps of sixteen, as a check of the installation
or vit_base: Table 9's other column, with which the first vision transformer was trained on ImageNet alone.

ImageNet comes from TFDS (data.source=tfds) or from folders:
    --config.data.source=folder --config.data.path=FOLDER_WITH_train_AND_val

Published top-1 of the authors' runs: tiny 72.2, small 79.8, base 81.8; distilled 74.5, 81.2, 83.4; distilled for 1000 epochs
76.6, 82.6, 84.2. Base took them 37 hours on 16 V100 (Ti and S less than three days on four). This code has not yet been run on
ImageNet.
"""

from ml_collections import ConfigDict

from deit_jax.config import ConfigError, default_config
from deit_jax.paper.rows import publish
from deit_jax.recipes.files import pick
from deit_jax.recipes.imagenet import EPOCHS, SIZES, TRAIN_SIZES, distil, pixels, run_locally, score_real_and_v2


def get_config(argument: str = "small") -> ConfigDict:
    words = pick(
        "deit.py", argument, size=(*SIZES, "vit_base"), teaching=("distilled", "soft"), epochs=EPOCHS, image_size=TRAIN_SIZES,
        where=("runlocal",),
    )  # fmt: skip
    size = words["size"] or "small"
    if size == "vit_base" and words["teaching"]:
        raise ConfigError(f"configs/deit.py:{argument}: vit_base has no distillation token")
    config = vit_base() if size == "vit_base" else recipe(size, distilled=bool(words["teaching"]))
    if words["teaching"]:
        # The teacher is regnety_160. "hard" keeps the default alpha of 0.5: both heads have the same weight.
        distil(config, "soft" if words["teaching"] == "soft" else "hard")
    if words["epochs"]:
        config.train.epochs = int(words["epochs"])
    if words["image_size"]:
        config.image_size = pixels(words["image_size"])
    publish(config, "deit", argument)
    if words["where"] == "runlocal":
        run_locally(config)
    return config


def recipe(size: str, *, distilled: bool = False) -> ConfigDict:
    """Table 9's column for DeiT, in its order. `distilled` adds a distillation token, without a teacher."""
    config = default_config()
    config.model.name = f"deit_{size}{'_distilled' if distilled else ''}_patch16_224"
    config.num_classes = 1000

    config.train.epochs = 300
    config.train.batch_size = 1024

    config.optimizer.name = "adamw"
    config.schedule.base_learning_rate, config.schedule.base_batch_size = 5e-4, 512  # 1e-3 for 1,024 images
    config.schedule.kind = "released"  # cosine decay; epoch e has the rate of epoch e - 1, as in the released code
    config.schedule.per_step = False
    config.schedule.warmup_learning_rate = 1e-6
    config.schedule.min_learning_rate = 1e-5
    config.optimizer.weight_decay = 0.05
    config.schedule.warmup_epochs = 5.0

    config.augment.label_smoothing = 0.1
    config.model.dropout_rate = 0.0
    config.model.drop_path_rate = 0.1  # stochastic depth
    config.data.repeats = 3  # repeated augmentation
    config.train.clip_norm = None

    config.data.train_crop, config.data.crop_scale = "random_resized", (0.08, 1.0)
    config.augment.flip_probability = 0.5
    config.augment.rand_augment = "rand-m9-mstd0.5-inc1"  # RandAugment 9/0.5
    config.augment.mixup_alpha = 0.8
    config.augment.cutmix_alpha = 1.0
    config.augment.erase_probability = 0.25
    # Rows that share a mixing draw: the batch per GPU in the authors' runs (4 GPUs of 256 for Ti and S, 16 of 64 for B).
    config.augment.max_group_size = {"tiny": 256, "small": 256, "base": 64}[size]

    config.ema.decay = 0.99996
    config.evaluation.crop_ratio = 0.875
    score_real_and_v2(config)
    return config


def vit_base() -> ConfigDict:
    """Table 9's column for ViT-B. It does not specify a minimum rate (here 0) or how often the rate changes (here every step)."""
    config = recipe("base")
    config.train.batch_size = 4096
    config.train.clip_norm = 1.0
    config.optimizer.weight_decay = 0.3
    config.schedule.base_learning_rate, config.schedule.base_batch_size = 3e-3, 4096
    config.schedule.warmup_epochs = 3.4
    config.schedule.warmup_learning_rate = config.schedule.min_learning_rate = 0.0
    config.schedule.kind, config.schedule.per_step = "plain", True
    config.model.dropout_rate, config.model.drop_path_rate = 0.1, 0.0
    config.data.repeats = 1
    config.augment.rand_augment = ""
    config.augment.mixup_alpha = config.augment.cutmix_alpha = 0.0
    config.augment.erase_probability = 0.0
    config.augment.label_smoothing = 0.0
    return config
