"""CIFAR-10 with a small DeiT: teacher and students train on the same 45,000 images, on a CPU.

    python run.py --config=configs/cifar10.py:teacher --workdir=runs/cifar10_teacher
    python run.py --config=configs/cifar10.py:soft --workdir=runs/cifar10_soft --config.teacher.weights=runs/cifar10_teacher

A student took 19 to 26 minutes of one core of an Intel Xeon, the teacher 3 h 19 min beside other work (docs/results.md). The
other 5,000 training images are held out for evaluation during training, and the 10,000 test images are scored once, at the end
(`extra` in results.json). The images are TFDS's `cifar10`. For a folder with `train` and `test`, add `folder` to the argument and

    --config.data.path=FOLDER --config.evaluation.extra.test.path=FOLDER

The argument is one of

    teacher      a RegNetY with 1.5 million parameters
    none         a DeiT with patches of 4 pixels, width 96 and 4 blocks, trained on the labels
    soft, hard   the same DeiT with a distillation token, trained on the teacher's probabilities or decisions
    two_tokens   no teacher; both tokens are trained on the labels

with `no_token` after soft or hard to train the class token alone, on labels and teacher. benchmarks/gain.py runs all of them.
"""

from ml_collections import ConfigDict

from deit_jax.config import ConfigError, default_config
from deit_jax.recipes.files import pick

STUDENT = dict(patch_size=4, embed_dim=96, depth=4, num_heads=3)
# Stages of 48, 96 and 192 channels whose convolutions have one group, because grouped convolutions are slow on a CPU.
TEACHER = dict(w0=48, wa=36.0, wm=2.0, depth=6, group_width=192, stem_stride=1)


def get_config(argument: str = "soft") -> ConfigDict:
    words = pick("cifar10.py", argument, kind=("teacher", "none", "soft", "hard", "two_tokens"), token=("no_token",),
                 source=("folder",))  # fmt: skip
    kind = words["kind"] or "soft"
    if words["token"] and kind not in ("soft", "hard"):
        raise ConfigError(f"configs/cifar10.py:{argument}: no_token is only for soft or hard")
    config = _images(bool(words["source"]))
    if kind == "teacher":
        config.model.name = "regnety_002"
        with config.unlocked():
            config.model.overrides = dict(TEACHER)
        config.model.drop_path_rate = 0.0
        config.schedule.base_learning_rate = 2e-3
        config.augment.label_smoothing = 0.0
        config.augment.mix_probability = 0.33
        config.train.epochs = 16
        config.ema.decay = 0.998
        return config
    distilled = kind != "none" and not words["token"]
    config.model.name = f"deit_tiny{'_distilled' if distilled else ''}_patch16_224"
    with config.unlocked():
        config.model.overrides = dict(STUDENT)
    config.model.drop_path_rate = 0.0
    config.schedule.base_learning_rate = 1e-3
    config.augment.mix_probability = 0.2
    if kind == "two_tokens":
        config.distillation.kind = "labels"
    if kind in ("soft", "hard"):
        config.distillation.kind = kind
        config.teacher.name = "regnety_002"
        config.teacher.variables = "ema"
    if kind == "soft":
        config.distillation.alpha, config.distillation.tau, config.distillation.kl_mean = 0.9, 2.0, "batch"
    return config


def _images(folder: bool) -> ConfigDict:
    config = default_config()
    config.image_size = 32
    if folder:  # its files are sorted by class, so that a range of them would leave classes out
        config.data.source, config.data.held_out = "folder", 0.1
    else:
        config.data.name = "cifar10"
        config.data.train_split, config.data.eval_split = "train[:90%]", "train[90%:]"
    test = {"source": config.data.source, "name": config.data.name, "path": "", "split": "test"}
    config.evaluation.extra = ConfigDict({"test": test})
    config.data.train_crop, config.data.crop_padding = "padded", 4
    config.augment.mean, config.augment.std = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
    config.augment.mixup_alpha, config.augment.cutmix_alpha = 0.8, 1.0
    config.augment.label_smoothing = 0.1
    config.augment.max_group_size = 32
    config.train.batch_size, config.train.epochs = 128, 6
    config.optimizer.betas = (0.9, 0.99)
    config.optimizer.weight_decay = 0.05
    config.schedule.base_batch_size = 64
    config.schedule.warmup_epochs = 1.0
    config.schedule.min_learning_rate = 1e-5
    config.ema.decay = 0.99
    config.evaluation.batch_size = 500
    config.evaluation.crop_ratio = 1.0
    config.evaluation.every_epochs = 1
    return config
