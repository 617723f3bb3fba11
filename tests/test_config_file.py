import pytest

from deit_jax.config_check import validate
from deit_jax.config_file import ConfigFileError, apply, load_config, split
from deit_jax.errors import UserError
from tests.tiny import tiny_config

START = "from deit_jax.config import default_config\ndef get_config():\n    config = default_config()\n"
NO_TEACHER = "configs/quickstart.py:no_teacher"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (START + "    config.train.epoch = 3\n", ", line 4: there is no field 'epoch'; the nearest is 'epochs'"),
        (START + "    config.trian.epochs = 3\n", ", line 4: there is no field 'trian'; the nearest is 'train'"),
        (START + "    config.train.epochs = 'many'\n", ", line 4: TypeError: Could not override field 'epochs'"),
        (START, ": get_config returns nothing, not a ConfigDict"),
        ("def get_config():\n    return {}\n", ": get_config returns a dict, not a ConfigDict"),
        ("x = 1\n\ndef get_config(:\n", ", line 3: invalid syntax"),
        ("import nothing_like_it\n", ", line 1: ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("def get_config():\n    open('/nowhere')\n", ", line 2: FileNotFoundError:"),
        ("x = 1\n", " has no function get_config"),
        (START + "    config.teacher.recipe = type(config)({'seed': 1})\n    return config\n",
         ": the configuration has no field 'teacher.recipe."),
        ("import ml_collections as m\ndef get_config():\n    return m.ConfigDict()\n", ": the configuration has no field"),
    ],
)  # fmt: skip
def test_errors_give_file_line_and_reason(tmp_path, source, message):
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(ConfigFileError) as raised:
        load_config(str(path))
    line = str(raised.value)
    assert line.startswith(f"{path}{message}"), line
    assert "\n" not in line and len(line) < 500


def test_a_user_error_of_the_file_is_passed_on():
    with pytest.raises(UserError, match=r"^configs/deit.py:huge: 'huge' is unknown"):
        load_config("configs/deit.py:huge")


def test_a_valid_file_returns_a_locked_configuration(tmp_path):
    config = load_config("configs/deit.py:small,distilled")
    assert config.model.name == "deit_small_distilled_patch16_224" and config.is_locked
    # A dataclass looks up its module by name.
    source = "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass Sizes:\n    rows: int = 48\n"
    (tmp_path / "mine.py").write_text(
        source + START + "    config.train.batch_size = Sizes().rows\n    return config\n"
    )
    assert load_config(str(tmp_path / "mine.py")).train.batch_size == 48


def configured(*arguments, file=NO_TEACHER):
    rest, overrides = split(["run.py", *arguments])
    config = load_config(file)
    apply(config, overrides)
    return config, rest[1:]


def value(name, *arguments, file=NO_TEACHER):
    config, _ = configured(*arguments, file=file)
    for part in name.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("train.epochs", "2e1", 20), ("train.batch_size", "1_024", 1024), ("seed", "48.0", 48), ("seed", " 7 ", 7),
        ("ema.decay", "1", 1.0), ("optimizer.eps", "1e-6", 1e-6),
        ("log.images", "no", False), ("train.train_mode", "0", False), ("log.wandb", "On", True),
        ("optimizer.betas", "0.8,0.95", (0.8, 0.95)), ("data.crop_scale", "(0.2, 1)", (0.2, 1)),
        ("augment.mean", "[0.5,0.5,0.5]", (0.5, 0.5, 0.5)),
        ("optimizer.trainable", "^head", ("^head",)), ("optimizer.no_decay", "bias$,norm{1,2}", ("bias$", "norm{1,2}")),
        ("optimizer.no_decay", "('bias$', 'scale,1')", ("bias$", "scale,1")),
        ("parallel.sharding_rules", "(('head', 'replicate'), ('.*', 'fsdp'))", (("head", "replicate"), (".*", "fsdp"))),
        ("teacher.classes", "7,0,3", (7, 0, 3)), ("teacher.std", "none", None),
        ("data.num_workers", "3", 3), ("data.num_workers", " Auto", "auto"), ("data.num_workers", "0", 0),
        ("augment.rand_augment", "", ""), ("train.max_steps", "None", None), ("log.peak_tflops", "None", None),
    ],
)  # fmt: skip
def test_values_are_parsed_by_the_type_of_the_field(name, text, expected):
    found = value(name, f"--config.{name}={text}")
    assert found == expected and type(found) is type(expected)


def test_none_resets_a_field():
    file = "configs/deit.py:vit_base"
    fields = ("train.clip_norm", "num_classes")
    config, _ = configured(*(f"--config.{name}=None" for name in fields), file=file)
    assert load_config(file).train.clip_norm == 1.0 and config.train.clip_norm is None and config.num_classes is None
    assert value("image_size", "--config.image_size=None") is None


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("train.epochs=1.5", "--config.train.epochs=1.5: give a whole number$"),
        ("train.epochs=None", "--config.train.epochs=None: give a whole number$"),
        ("data.max_eval_images=many", "give a whole number, or None"),
        ("optimizer.weight_decay=nan", "give a finite number"),
        ("schedule.base_learning_rate=-inf", "give a finite number"),
        ("train.clip_norm=1e400", "give a finite number, or None"),
        ("optimizer.betas=0.9,inf", "give finite numbers, separated by commas"),
        ("augment.std=0.2 0.2 0.2", "give finite numbers, separated by commas"),
        ("augment.std=0.2,,0.2", "give finite numbers, separated by commas"),
        ("teacher.classes=1,2.5", "give whole numbers"),
        ("data.num_workers=many", "--config.data.num_workers=many: give a whole number, or auto$"),
        ("log.report=maybe", "give True or False"),
        ("parallel.sharding_rules=fsdp", "give pairs of texts"),
        ("teacher.weights=None", "leave it empty: --config.teacher.weights=$"),
        ("data.index=None", "leave it empty: --config.data.index=$"),
        ("model.name= none", "give a text"),
        ("published.ours=inf", "give a finite number"),
        ("model.overrides=depth", "give a dictionary"),
        ("train=1", "is a section: set its fields, e.g. --config.train"),
        ("optimizer.beta=1,2", "there is no such field; the nearest is --config.optimizer.betas"),
        ("model.patch_size=8", "the nearest is --config.model.overrides.patch_size"),
        ("teacher.recipe.train.epochs=3", "config.teacher.recipe is None"),
        ("evaluation.extra.real.path=x", "has no set 'real'"),
        ("teacher.each.2.weights=x", "a single teacher has only the fields overrides, variables, mean"),
        ("teacher.each.2.mean=a", "give finite numbers"),
        ("teacher.recipe={'seed': 1}", "give None, or set the recipe's fields"),
        ("seed", "the value is missing"),
    ],
)
def test_invalid_values_and_fields_are_refused_in_one_line(argument, message):
    with pytest.raises(UserError, match=message) as raised:
        configured(f"--config.{argument}")
    assert "\n" not in str(raised.value) and str(raised.value).startswith(f"--config.{argument.split('=')[0]}")


def test_model_overrides_have_the_types_of_the_model_in_any_order():
    config, _ = configured(
        "--config.model.overrides.stem_width=24", "--config.model.overrides.wm=2", "--config.model.name=regnety_004",
        "--config.model.overrides={'depth': 5, 'wm': 3.0}",
    )  # fmt: skip
    assert config.model.overrides.to_dict() == {"depth": 5, "wm": 2.0, "stem_width": 24}
    assert isinstance(config.model.overrides.wm, float)
    config, _ = configured(
        "--config.model.overrides.mlp_ratio=3", file="configs/deit.py:tiny"
    )  # which has no overrides
    assert config.model.overrides.to_dict() == {"mlp_ratio": 3.0}
    validate(config)


def test_fields_of_a_teachers_recipe_can_be_set():
    file = "tests/tiny.py:both"
    config, _ = configured("--config.teacher.recipe.model.overrides.depth=3", file=file)
    assert (config.teacher.recipe.model.overrides.depth, config.model.overrides.depth) == (3, 2)
    with pytest.raises(
        UserError, match=r"config\.teacher\.recipe\.model\.overrides: regnety_002 has no field 'patch_siz'"
    ):
        configured("--config.teacher.recipe.model.overrides.patch_siz=3", file=file)
    with pytest.raises(UserError, match=r"no such field; the nearest is --config\.teacher\.recipe\.ema\.decay"):
        configured("--config.teacher.recipe.ema.decy=0", file=file)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("depht=3", "deit_tiny_patch16_224 has no field 'depht'; nearest: depth"),
        ("depth=three", "depth=three: give a whole number"),
        ("mlp_ratio=inf", "mlp_ratio=inf: give a finite number"),
        ("distilled=2", "give True or False"),
        ("remat=full", r"set config\.model\.remat instead"),
        ("image_size=32", r"set config\.image_size instead"),
        ("dtype=bfloat16", r"set config\.compute_dtype instead"),
    ],
)
def test_invalid_overrides_are_refused(argument, message):
    with pytest.raises(UserError, match=message):
        configured(f"--config.model.overrides.{argument}")


def test_values_may_be_separate_arguments_and_the_last_one_wins():
    config, rest = configured(
        "a.jpg", "--config.seed", "5", "-config.log.images", "no", "--noconfig.log.report", "b.jpg"
    )
    assert (config.seed, config.log.images, config.log.report, rest) == (5, False, False, ["a.jpg", "b.jpg"])
    config, rest = configured(
        "--config.log.wandb", "c.jpg", "--config.seed=1", "--config.seed=2", "--", "--config.seed=3"
    )
    assert (config.log.wandb, config.seed, rest) == (True, 2, ["c.jpg", "--", "--config.seed=3"])
    assert value("optimizer.trainable", "--config.optimizer.trainable=a", "--config.optimizer.trainable=b") == (
        "a",
        "b",
    )
    pairs = ["--config.optimizer.betas=0.1,0.2", "--config.optimizer.betas=0.3,0.4"]
    assert value("optimizer.betas", *pairs) == (0.3, 0.4)
    with pytest.raises(UserError, match="--no is for a field that is True or False"):
        configured("--noconfig.seed")


def test_extra_sets_and_published_figures_of_the_file_can_be_set():
    config, _ = configured("--config.evaluation.extra.held_out.split=test[:9]", file="tests/tiny.py:extra")
    assert config.evaluation.extra.held_out.split == "test[:9]"
    assert configured("--config.published['a b']=3")[0].published.to_dict() == {"a b": 3.0}


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (["--config.num_classes=10"], False),
        (["--config.data.name=cifar10"], False),
        (["--config.num_classes=1000", "--config.data.name=imagenet2012:5.1.0", "--config.data.source=folder"], True),
    ],
)
def test_published_figures_of_other_data_are_removed(typed, kept):
    published = load_config("configs/deit.py:tiny").published.to_dict()
    assert published
    config, _ = configured("--config.published['a b']=3", *typed, file="configs/deit.py:tiny")
    assert config.published.to_dict() == {"a b": 3.0} | (published if kept else {})


def test_fields_of_single_teachers_can_be_set():
    config, _ = configured("--config.teacher.each.2.mean=0.5,0.4,0.3", "--config.teacher.each.2.classes=3,1")
    assert config.teacher.each.to_dict() == {"2": {"mean": (0.5, 0.4, 0.3), "classes": (3, 1)}}
    config, _ = configured("--config.teacher.each={'1': {'variables': 'ema'}}")
    assert config.teacher.each.to_dict() == {"1": {"variables": "ema"}}


def test_none_is_a_choice_of_some_text_fields():
    assert value("distillation.kind", "--config.distillation.kind=none") == "none"
    config, _ = configured(
        "--config.model.remat=none",
        "--config.teacher.overrides.remat=none",
        "--config.teacher.name=deit_tiny_patch16_224",
    )
    assert config.model.remat == config.teacher.overrides.remat == "none"


def test_the_name_of_an_extra_set_may_contain_a_hyphen():
    config = tiny_config()
    with config.unlocked():
        config.evaluation.extra["imagenet-v2"] = {"source": "folder", "name": "", "path": "", "split": "val"}
    _, overrides = split(
        ["--config.evaluation.extra.imagenet-v2.path=/a", "--config.evaluation.extra['imagenet-v2'].split", "b"]
    )
    apply(config, overrides)
    assert (config.evaluation.extra["imagenet-v2"].path, config.evaluation.extra["imagenet-v2"].split) == ("/a", "b")
    with pytest.raises(UserError, match="has no set 'top-images'; this configuration has imagenet-v2"):
        apply(config, split(["--config.evaluation.extra.top-images.path=/a"])[1])
