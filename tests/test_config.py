import pytest

from configs import cifar10, deit, quickstart, teacher
from deit_jax.config import ConfigError
from deit_jax.config_check import validate
from deit_jax.training.plan import sizes_of_mixing


def test_the_recipe_is_table_9():
    config = deit.recipe("small")
    assert (config.train.epochs, config.train.batch_size, config.train.clip_norm) == (300, 1024, None)
    assert config.optimizer.name == "adamw" and config.optimizer.weight_decay == 0.05
    rate = config.schedule.base_learning_rate * config.train.batch_size / config.schedule.base_batch_size
    assert rate == pytest.approx(5e-4 * 1024 / 512)
    assert config.schedule.warmup_epochs == 5 and config.augment.label_smoothing == 0.1
    assert config.model.drop_path_rate == 0.1 and config.model.dropout_rate == 0
    assert config.data.repeats == 3 and config.augment.rand_augment == "rand-m9-mstd0.5-inc1"
    assert (config.augment.mixup_alpha, config.augment.cutmix_alpha, config.augment.erase_probability) == (
        0.8,
        1.0,
        0.25,
    )


@pytest.mark.parametrize(
    "argument",
    [
        size + rest
        for size in ("tiny", "small", "base")
        for rest in ("", ",distilled", ",soft", ",distilled,runlocal", ",runlocal")
    ],
)
def test_every_argument_of_deit_py_is_valid(argument):
    config = deit.get_config(argument)
    if config.distillation.kind != "none" and not config.teacher.weights:
        config.teacher.weights = "runs/teacher"
    validate(config)
    assert ("distilled" in config.model.name) == (config.distillation.kind != "none")
    assert config.augment.group_size is None and config.augment.groups_per_block is None
    largest = 4 if "runlocal" in argument else 64 if "base" in argument else 256
    assert config.augment.max_group_size == largest and sizes_of_mixing(config) == (largest, 4)


def _with_a_teacher(argument):
    config = cifar10.get_config(argument)
    config.teacher.weights = "runs/teacher"
    return config


def test_the_other_configurations_are_valid():
    for config in (
        teacher.get_config(),
        teacher.get_config("regnety_040,runlocal"),
        quickstart.get_config(),
        *map(
            quickstart.get_config, ("no_teacher", "soft", "hard", "own_teacher,10k", "10k", "no_teacher,10k", "teacher")
        ),
        *map(cifar10.get_config, ("none", "two_tokens", "teacher")),
        *map(_with_a_teacher, ("soft", "hard", "soft,no_token")),
    ):
        validate(config)


@pytest.mark.parametrize(
    ("module", "argument"),
    [
        (deit, "small,destilled"),
        (teacher, "resnet50"),
        (quickstart, "fast"),
        (cifar10, "none,no_token"),
        *(
            (quickstart, words)
            for words in ("no_teacher,own_teacher", "own_teacher,teacher", "teacher,10k", "hard,soft")
        ),
    ],
)
def test_unknown_arguments_are_refused(module, argument):
    with pytest.raises(ConfigError, match=argument.split(",")[-1]):
        module.get_config(argument)
