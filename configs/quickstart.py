"""A convnet teacher, then a DeiT with a distillation token that it teaches, on real images that come with the package.

    python run.py --config=configs/quickstart.py --workdir=runs/quickstart

Fashion-MNIST, 10,000 images to train on and 2,000 to test. Two CPU cores, minutes; expect a teacher of about 85 %, a student of
about 82 % (docs/results.md). The modules, losses and recipe are those of
configs/deit.py; only sizes, strengths and lengths differ. Argument, as in configs/quickstart.py:no_teacher,

    no_teacher   the same DeiT without the token, from the labels alone
    teacher      the teacher alone
"""

from ml_collections import ConfigDict

from deit_jax.config import ConfigError
from deit_jax.recipes.small import fashion_mnist

STUDENT = dict(patch_size=7, embed_dim=128, depth=4, num_heads=4)
# 28-pixel images leave no room for a stem that halves them.
TEACHER = dict(w0=32, wa=32.0, wm=2.0, depth=4, group_width=32, stem_stride=1)


def get_config(argument: str = "") -> ConfigDict:
    if argument not in ("", "no_teacher", "teacher"):
        raise ConfigError(f"configs/quickstart.py:{argument}: the arguments are no_teacher and teacher")
    if argument == "teacher":
        return teacher_config()
    config = _common()
    config.train.epochs = 10
    config.schedule.base_learning_rate = 1e-3
    config.schedule.warmup_epochs = 1.0
    with config.unlocked():
        config.model.overrides = dict(STUDENT)
    if argument == "no_teacher":
        config.model.name = "deit_tiny_patch16_224"
        return config
    with config.unlocked():
        config.published["same DeiT, labels alone, same time (see docs)"] = 84.82
    config.model.name = "deit_tiny_distilled_patch16_224"
    config.distillation.kind = "hard"
    config.teacher.name = "regnety_002"
    config.teacher.recipe = teacher_config()
    return config


def teacher_config() -> ConfigDict:
    config = _common()
    config.model.name = "regnety_002"
    with config.unlocked():
        config.model.overrides = dict(TEACHER)
    config.model.drop_path_rate = 0.0
    config.train.epochs = 4
    config.schedule.base_learning_rate = 1e-2
    config.schedule.warmup_epochs = 0.5
    return config


def _common() -> ConfigDict:
    config = fashion_mnist()
    config.augment.group_size = 4  # nothing is mixed; small, so that up to four processes can share a batch
    config.evaluation.every_epochs = 2
    return config
