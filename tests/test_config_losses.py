import dataclasses

import pytest

from deit_jax import register_loss
from deit_jax.config import ConfigError, needs_teacher
from deit_jax.config_check import validate, without_effect
from deit_jax.config_file import apply, load_config, split
from deit_jax.config_losses import loss_section
from deit_jax.config_model import check_heads
from deit_jax.errors import UserError
from deit_jax.loss_kinds import loss_kinds
from deit_jax.modes.evaluate import without_teacher
from tests.tiny import tiny_config

PLUGIN = """
import dataclasses
import deit_jax

@dataclasses.dataclass
class Margin:
    size: float = 1
    steps: int = 2
    squared: bool = False
    mode: str = "both"
    weights: tuple = (1.0, 2.0)

deit_jax.register_loss("margin", Margin, needs_teacher=True, teaches_token=True)
"""


@pytest.fixture
def plugin(modules):
    return modules(margins=PLUGIN)


def configured(*arguments, file="tests/tiny.py"):
    _, overrides = split(["run.py", *(f"--config.{argument}" for argument in arguments)])
    config = load_config(file)
    apply(config, overrides)
    return config


PICKED = ("plugins=margins", "distillation.kind=margin")


def test_the_fields_of_a_registered_loss_are_set_in_any_order(plugin):
    config = configured(
        "margin.size=3", "margin.weights=4", "margin.weights=5", "margin.mode=none", "margin.squared=on", *reversed(PICKED)
    )  # fmt: skip
    validate(config)
    expected = {"size": 3.0, "steps": 2, "squared": True, "mode": "none", "weights": (4.0, 5.0)}
    assert config.margin.to_dict() == expected == loss_section(config) and isinstance(config.margin.size, float)
    assert needs_teacher(config) and config.is_locked
    assert not [name for name, _ in without_effect(config, ["margin.size"]) if name.startswith("margin")]
    config.distillation.alpha = 0.3
    assert ("distillation.alpha", "distillation.kind is margin") in without_effect(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("margin.size=big",), "--config.margin.size=big: give a finite number$"),
        (("margin.steps=1.5",), "--config.margin.steps=1.5: give a whole number$"),
        (("margin.squared",), "--config.margin.squared: the value is missing"),
        (("margin.sizes=1",), "--config.margin.sizes: there is no such field; the nearest is --config.margin.size$"),
        (("marge.size=1",), "--config.marge.size: there is no such field; the nearest is --config."),
        (
            ("margin.size=1", "distillation.kind=hard"),
            "config.distillation.kind is hard: set it to margin to use its fields",
        ),
        (("teacher.recipe.margin.size=1",), "config.teacher.recipe is None"),
        (("margin=1",), "--config.margin: there is no such field"),
        (("noconfig",), "there is no such field"),
    ],
)
def test_unknown_fields_of_a_loss_are_refused_in_one_line(plugin, arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        configured(*PICKED, *arguments)
    assert "\n" not in str(raised.value)


def test_a_section_exists_while_its_loss_is_selected(plugin):
    config = configured(*PICKED)
    assert "margin" in config
    apply(config, split(["--config.distillation.kind=soft"])[1])
    assert "margin" not in config
    validate(config)
    config.distillation.kind = "margin"
    with config.unlocked():
        config.margin = dict(size=5, steps=1)
    validate(config)
    assert config.margin.to_dict() == {"size": 5, "steps": 1, "squared": False, "mode": "both", "weights": (1.0, 2.0)}
    assert isinstance(loss_section(config)["size"], float)
    assert "margin" not in (evaluated := without_teacher(config)) and evaluated.distillation.kind == "none"
    config.distillation.kind = "hard"
    with pytest.raises(
        ConfigError, match=r"config\.margin is the section of config\.distillation\.kind=margin, but the kind is"
    ):
        validate(config)


def test_a_recipe_has_its_own_loss_section(plugin):
    config = configured(
        "teacher.recipe.plugins=margins", "teacher.recipe.distillation.kind=margin", "teacher.recipe.margin.size=2",
        file="tests/tiny.py:both",
    )  # fmt: skip
    assert config.teacher.recipe.margin.size == 2.0 and "margin" not in config
    with config.unlocked():
        config.teacher.recipe.distillation.kind = "none"
    with pytest.raises(ConfigError, match=r"^config\.teacher\.recipe\.margin is the section of"):
        validate(config)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"size": "big"}, r"config\.margin\.size='big': give a finite number"),
        ({"size": float("nan")}, r"config\.margin\.size=nan: give a finite number"),
        ({"steps": 2**40}, r"config\.margin\.steps=1099511627776 must be at most"),
        ({"siz": 1.0}, r"config\.margin\.siz: there is no such field; the nearest is config\.margin\.size"),
        (3, r"config\.margin=3: give a dictionary"),
    ],
)
def test_the_section_of_a_file_is_checked(plugin, section, message):
    config = configured(*PICKED)
    with config.unlocked(), config.ignore_type():
        config.margin = section
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_the_error_for_an_unknown_kind_lists_registered_losses(plugin):
    config = configured(*PICKED)
    with config.ignore_type():
        config.distillation.kind = "margins"
    with config.unlocked():
        del config["margin"]
    with pytest.raises(ConfigError, match=r"is none of none, soft, hard, labels, labels_mean, labels_class, margin$"):
        validate(config)
    config = tiny_config(distillation__kind="labels")
    with pytest.raises(
        ConfigError, match=r"kind is labels: set it to soft, hard or margin, or set config.features.pairs$"
    ):
        validate(config)


def build(x: float = 1.0):
    return x


@pytest.mark.parametrize(
    ("kind", "function", "message"),
    [
        ("my-loss", build, "is not a Python identifier"),
        ("class", build, "is not a Python identifier"),
        ("soft", build, "there is already a loss 'soft'"),
        ("teacher", build, r"config\.teacher is a part of every configuration"),
        ("seed", build, r"config\.seed is a part of every configuration"),
        ("items", build, r"config\.items is a part of every configuration"),
        ("own", 3, "build of 'own' is 3, not a function"),
        ("own", lambda x: x, "the parameter 'x' of 'own' needs a default of type"),
        ("own", lambda x=None: x, "the parameter 'x' of 'own' needs a default of type"),
        ("own", lambda **x: x, "the parameter 'x' of 'own' cannot be passed by name"),
        ("own", lambda x=float("inf"): x, "the parameter 'x' of 'own' has the default inf"),
        ("own", lambda update=1: update, "the parameter 'update' of 'own' has a name that ConfigDict uses"),
    ],
)
def test_invalid_losses_are_refused_by_register_loss(modules, kind, function, message):
    with pytest.raises(ValueError, match=message):
        register_loss(kind, function)
    assert "own" not in loss_kinds()


def test_a_loss_may_be_redefined_but_not_replaced(modules):
    register_loss("own", build)
    register_loss("own", build)

    def other():
        pass

    with pytest.raises(ValueError, match="there is already a loss 'own'"):
        register_loss("own", other)
    namespace = {"__name__": "notebook"}
    for default in (1.0, 2.0):  # a notebook cell that is run again
        exec(f"def build_again(x: float = {default}): return x", namespace)
        register_loss("again", namespace["build_again"])
    config = tiny_config(distillation__kind="again", teacher__weights="", model__name="deit_tiny_patch16_224")
    validate(config)
    assert config.again.x == 2.0


@pytest.mark.parametrize("teaches_token", [True, False])
def test_a_loss_declares_whether_it_trains_the_distillation_head(modules, teaches_token):
    register_loss("own", build, teaches_token=teaches_token)
    changes = dict(distillation__kind="own", teacher__weights="")
    check_heads(tiny_config(**changes, model__name="deit_tiny_patch16_224"))
    check_heads(tiny_config(**changes, model__fusion="class"))
    if teaches_token:
        check_heads(tiny_config(**changes))
    else:
        with pytest.raises(ConfigError, match=r"kind=own does not train the distillation head of deit_tiny_dist"):
            check_heads(tiny_config(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"distillation__kind": "labels", "teacher__weights": "", "distillation__alpha": 0.0, "model__fusion": "class"},
        {"distillation__alpha": 1.0, "model__name": "deit_tiny_patch16_224"},
        {"distillation__alpha": 0.0, "model__name": "deit_tiny_patch16_224", "teacher__record": "answers"},
        {"distillation__alpha": 0.0, "model__name": "deit_tiny_patch16_224", "features__pairs": ("patch_1:s2",)},
        {"distillation__kind": "labels_mean", "teacher__weights": "", "distillation__alpha": 0.0},
    ],
)
def test_weights_of_0_and_1_are_accepted_where_they_leave_nothing_out(changes):
    check_heads(tiny_config(**changes))


def test_without_a_teacher_a_loss_that_needs_one_is_refused(modules):
    register_loss("own", dataclasses.make_dataclass("Own", [("x", int, 1)]), needs_teacher=True, teaches_token=True)
    with pytest.raises(ConfigError, match=r"config\.distillation\.kind=own needs a teacher"):
        validate(tiny_config(distillation__kind="own", teacher__weights=""))
