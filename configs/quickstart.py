"""A small DeiT with a distillation token and a convnet teacher, trained on 2,000 real images in minutes on two CPU cores.

    python run.py --config=configs/quickstart.py --workdir=runs/quickstart

Fashion-MNIST and the teacher are included in the package. The teacher is a RegNetY trained by this project on all 60,000 labelled
training images, of which the student gets 2,000 (docs/results.md). Modules, losses and steps are those of configs/deit.py; sizes,
lengths and strengths differ. The student learns from the labels, from the teacher's probabilities (soft distillation) and its
features. Arguments, several as in configs/quickstart.py:no_teacher,10k

    soft         soft distillation without features
    hard         hard distillation without features, as in the paper
    own_teacher  first train a teacher on the student's images, as in the paper
    no_teacher   the same DeiT without the token, trained on the labels alone
    teacher      train the teacher itself, on all images of the data (the embedded ones unless config.data says otherwise)
    10k          10,000 images instead of 2,000
"""

from ml_collections import ConfigDict

from deit_jax.config import ConfigError, default_config
from deit_jax.recipes.files import pick

STUDENT = dict(patch_size=7, embed_dim=128, depth=4, num_heads=4)
# Images of 28 pixels are too small for a stem that halves them.
TEACHER = dict(w0=32, wa=32.0, wm=2.0, depth=4, group_width=32, stem_width=16, stem_stride=1)


def get_config(argument: str = "") -> ConfigDict:
    words = pick(
        "quickstart.py",
        argument,
        kind=("soft", "hard", "no_teacher", "teacher"),
        teacher=("own_teacher",),
        images=("10k",),
    )
    kind, many = words["kind"], bool(words["images"])
    if (words["teacher"] and kind in ("no_teacher", "teacher")) or (many and kind == "teacher"):
        other = words["teacher"] or words["images"]
        raise ConfigError(f"configs/quickstart.py:{argument}: {kind} cannot be combined with {other}")
    if kind == "teacher":
        return teacher_config(None, epochs=10)
    config = _images(1000 if many else 200)
    config.augment.mixup_alpha, config.augment.cutmix_alpha = 0.8, 1.0
    config.augment.mix_mode, config.augment.mix_probability = "pair", 0.8
    config.schedule.base_learning_rate = 1e-3
    config.schedule.warmup_epochs = 1.0 if many else 5.0
    config.evaluation.every_epochs = 4 if many else 20
    with config.unlocked():
        config.model.overrides = dict(STUDENT)
    if kind == "no_teacher":
        config.model.name = "deit_tiny_patch16_224"
        config.model.drop_path_rate = 0.1
        config.train.epochs = 52 if many else 260  # as much time as soft; see docs/results.md
        return config
    config.model.name = "deit_tiny_distilled_patch16_224"
    config.model.drop_path_rate = 0.0
    config.train.epochs = 40 if many else 200
    config.distillation.kind = kind or "soft"
    if not kind:
        config.train.epochs = 30 if many else 150
        config.features.pairs, config.features.mse = ("patch_2:s2", "patch_4:s3"), 1.0
    if config.distillation.kind == "soft":
        config.distillation.alpha, config.distillation.tau, config.distillation.kl_mean = 0.9, 2.0, "batch"
    config.teacher.name = "regnety_002"
    if words["teacher"]:
        config.teacher.recipe = teacher_config(config.data.images_per_class, epochs=30 if many else 100)
        return config
    config.teacher.weights = "embedded"
    with config.unlocked():
        config.teacher.overrides = dict(TEACHER)
        if not many:  # on the embedded test images, seed 0; docs/results.md has the result on all 10,000
            config.published["labels alone, a full run (argument no_teacher)"] = 86.45
            config.published["labels alone, 10,000 images, a full run (no_teacher,10k)"] = 87.70
    return config


def teacher_config(images_per_class: int | None, epochs: int) -> ConfigDict:
    """The recipe of the included teacher (None: all images, 10 epochs), or of a teacher trained on the student's images."""
    config = _images(images_per_class)
    config.train.epochs = epochs
    config.model.name = "regnety_002"
    with config.unlocked():
        config.model.overrides = dict(TEACHER)
    config.model.drop_path_rate = 0.0
    config.train.batch_size = 128
    config.schedule.base_learning_rate = 2e-3  # for 64 images, so 4e-3
    config.augment.flip_probability = 0.0
    config.augment.label_smoothing = 0.0
    config.augment.mixup_alpha, config.augment.cutmix_alpha, config.augment.mix_probability = 0.8, 1.0, 0.33
    config.augment.max_group_size = 32
    config.ema.decay = 0.998
    return config


def _images(images_per_class: int | None) -> ConfigDict:
    config = default_config()
    config.image_size = 28
    config.data.source = "fashion_mnist_10k"
    config.data.images_per_class = images_per_class
    config.data.train_crop, config.data.crop_padding = "padded", 1
    config.augment.label_smoothing = 0.1
    config.augment.max_group_size = 16
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
