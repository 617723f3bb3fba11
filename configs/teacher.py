"""RegNetY teachers trained on ImageNet-1k with DeiT's data and augmentation, by SGD (section 5 of the paper's ICML version).

    python run.py --config=configs/teacher.py:regnety_160 --workdir=TEACHER_WORKDIR
    python run.py --config=configs/teacher.py:regnety_160,384px --workdir=TEACHER_384 --config.model.weights=TEACHER_WORKDIR

Argument: regnety_040 | regnety_080 | regnety_120 | regnety_160 (Table 2) or any other RegNetY; then any of
    384px      fine-tune the trained teacher for students at 384 pixels, as in FixRes (arXiv 1906.06423)
    runlocal   the same modules and recipe on the embedded images, for two steps
The student uses it with --config.teacher.weights=TEACHER_WORKDIR. The DeiT-B teacher of Table 2 is configs/deit.py:base.

Published top-1: 80.0, 81.7, 82.4, 82.9. RegNetY-16GF took 20 % longer than the 300 epochs of DeiT-B (37 hours on 16 V100), in "a
similar training", and Table 9 is for all experiments; so this file also has 300 epochs, batches of 1024, 5 epochs of warm-up and
a cosine. The authors did not publish the optimizer settings of their teachers. Those below are common for a RegNet (Nesterov
momentum 0.9, rate 0.2 for 512 images, weight decay 5e-5); not yet run on ImageNet. --config.model.regnet_init=timm_0.3 is the
random initialisation of pycls and of the timm version that the released code pins.

How the authors' teachers processed 384 pixels is not published either. A network trained on random crops sees smaller objects in
evaluation. Larger images correct this, but shift the statistics before the classifier. So only the classifier and the last
BatchNorms of the last stage are trained, on centre crops as in evaluation with flips only, and all modules run as in evaluation
(docs/finetuning.md). Rate, decay and length are our choice and not yet run.
"""

from ml_collections import ConfigDict

from deit_jax.config import MUST_BE_GIVEN
from deit_jax.models.registry import list_models, model_family
from deit_jax.paper.rows import publish
from deit_jax.recipes.files import pick
from deit_jax.recipes.imagenet import deit, run_locally


def get_config(argument: str = "regnety_160") -> ConfigDict:
    names = tuple(model for model in list_models() if model_family(model) == "regnet")
    words = pick("teacher.py", argument, name=names, image_size=("384px",), where=("runlocal",))

    config = deit("small")  # data, augmentation, length
    config.model.name = words["name"] or "regnety_160"
    config.model.drop_path_rate = 0.0
    config.optimizer.name = "sgd"
    config.optimizer.weight_decay = 5e-5
    config.schedule.kind = "plain"
    config.schedule.base_learning_rate = 0.2
    config.schedule.warmup_learning_rate = 0.02
    config.schedule.min_learning_rate = 0.0
    if words["image_size"]:
        fix_resolution(config)
    publish(config, "teacher", argument)
    if words["where"] == "runlocal":
        run_locally(config)
    return config


def fix_resolution(config: ConfigDict) -> None:
    config.image_size = 384
    config.model.weights = MUST_BE_GIVEN
    config.data.train_crop = "center"
    config.data.repeats = 1  # copies would be equal except for the flip
    config.augment.rand_augment = ""
    config.augment.erase_probability = 0.0
    config.augment.mixup_alpha = config.augment.cutmix_alpha = 0.0
    config.train.batch_size = 512
    config.augment.max_group_size = 32
    config.train.epochs = 20
    config.train.train_mode = False
    config.optimizer.trainable = (r"^head/", r"^s4/b\d+/(conv3|downsample)/bn/")
    config.optimizer.weight_decay = 1e-4
    config.schedule.base_learning_rate = 1e-3
    config.schedule.warmup_epochs = 0.0
