import pytest

from deit_jax.config import ConfigError
from deit_jax.config_check import validate
from tests.tiny import tiny_config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("compute_dtype", "float16"),
        ("distillation.alpha", 1.5),
        ("distillation.tau", float("nan")),
        ("data.repeats", 0),
        ("train.epochs", -1),
        ("ema.decay", 1.1),
        ("schedule.kind", "linear"),
        ("optimizer.no_decay", ("(",)),
        ("parallel.sharding_rules", (("(", "fsdp"),)),
        ("parallel.sharding_rules", ((".*", "split"),)),
        ("distillation.kl_mean", "classes"),
        ("evaluation.protocol", "torchvision"),
        ("teacher.variables", "both"),
        ("optimizer.betas", (0.9,)),
        ("data.crop_ratio", (1.0, 1.0, 1.0)),
    ],
)
def test_values_out_of_bounds_are_named(name, value):
    config = tiny_config()
    config.update_from_flattened_dict({name: value})
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        validate(config)


def test_teachers_must_fit_the_distillation():
    with pytest.raises(ConfigError, match=r"distillation\.kind is none"):
        validate(tiny_config(distillation__kind="none"))
    with pytest.raises(ConfigError, match=r"needs a teacher: set config\.teacher\.weights"):
        validate(tiny_config(teacher__weights=""))
    config = tiny_config()
    config.teacher.recipe = tiny_config()
    with pytest.raises(ConfigError, match="exclude each other"):
        validate(config)
    config.teacher.weights = ""
    with pytest.raises(ConfigError, match="trains 'deit_tiny"):
        validate(config)
