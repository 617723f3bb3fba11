"""Configurations of the real recipe, small enough for a test: seconds to compile, the same code."""

from ml_collections import ConfigDict

from deit_jax.recipes.imagenet import deit

STUDENT = dict(patch_size=14, embed_dim=16, depth=2, num_heads=2)
TEACHER = dict(w0=8, wa=8.0, wm=2.0, depth=2, group_width=8, stem_width=8, stem_stride=2)


def paper_config() -> ConfigDict:
    """DeiT-S by Table 9, on any data set."""
    config = deit("small")
    config.num_classes = None
    with config.unlocked():
        config.evaluation.extra = ConfigDict()
    return config


def tiny_config(**changes) -> ConfigDict:
    """A distilled DeiT on embedded images with everything random on; `changes` by dotted name (with __ for the dots).

    With distillation__kind="none" alone it is the plain DeiT: nothing would teach the second head.
    """
    config = paper_config()
    config.image_size = 28
    config.model.name = "deit_tiny_distilled_patch16_224"
    config.distillation.kind = "hard"
    config.teacher.name = "regnety_002"
    config.teacher.weights = "random"
    config.data.source = "fashion_mnist_10k"
    config.data.train_crop = "padded"
    config.data.max_eval_images = 90
    config.data.num_threads = 1
    config.augment.rand_augment = ""
    config.augment.max_group_size = 4
    config.train.batch_size = 32
    config.train.max_steps = 4
    config.schedule.warmup_learning_rate = 1e-3
    config.schedule.base_batch_size = 32
    config.ema.decay = 0.9
    config.evaluation.batch_size = 40
    config.evaluation.crop_ratio = 1.0
    config.log.every_steps = 1
    config.log.tensorboard = False
    config.log.report = False
    with config.unlocked():
        config.model.overrides = dict(STUDENT)
        config.teacher.overrides = dict(TEACHER)
    config.model.drop_path_rate = 0.2
    if changes.get("distillation__kind") == "none":
        config.model.name = "deit_tiny_patch16_224"
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def tiny_teacher_config() -> ConfigDict:
    """The teacher of `tiny_config`, to be trained."""
    config = tiny_config(distillation__kind="none", teacher__weights="", model__name="regnety_002")
    with config.unlocked():
        config.model.overrides = dict(TEACHER)
    config.model.drop_path_rate = 0.0
    return config


def get_config(argument: str = "") -> ConfigDict:
    """For run.py: `student`, `teacher`, `both` (the teacher trained first), or `extra` (with two extra evaluation sets)."""
    if argument == "teacher":
        return tiny_teacher_config()
    config = tiny_config()
    if argument == "extra":
        fields = {"name": "", "path": "", "split": "test", "labels": ""}
        config.evaluation.extra = ConfigDict(
            {"held_out": fields | {"source": "fashion_mnist_10k"}, "missing": fields | {"source": "folder"}}
        )
    if argument == "both":
        config.teacher.weights = ""
        config.teacher.recipe = tiny_teacher_config()
    return config
