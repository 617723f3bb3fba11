import numpy as np
import pytest
from ml_collections import ConfigDict

from deit_jax.config import ConfigError, default_config
from deit_jax.config_check import questionable, validate, without_effect
from deit_jax.paper.commands import FILES
from tests.recipes.programs import ARGUMENTS, get_config
from tests.tiny import tiny_config, tiny_teacher_config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("compute_dtype", "float16"),
        ("distillation.alpha", 1.5),
        ("distillation.tau", float("nan")),
        ("data.repeats", 0),
        ("train.epochs", -1),
        ("ema.decay", 1.1),
        ("ema.decay", 1.0),
        ("schedule.base_learning_rate", 0.0),
        ("schedule.kind", "linear"),
        ("optimizer.no_decay", ("(",)),
        ("parallel.sharding_rules", (("(", "fsdp"),)),
        ("parallel.sharding_rules", ((".*", "split"),)),
        ("distillation.kl_mean", "classes"),
        ("evaluation.protocol", "torchvision"),
        ("teacher.variables", "both"),
        ("optimizer.betas", (0.9,)),
        ("data.crop_ratio", (1.0, 1.0, 1.0)),
        ("data.crop_ratio", (1.5, 1.0)),
        ("data.crop_scale", (0.0, 1.0)),
        ("optimizer.betas", (0.9, 1.0)),
        ("optimizer.betas", (0.9, float("nan"))),
        ("optimizer.betas", ("0.9", "0.99")),
        ("optimizer.momentum", -0.1),
        ("optimizer.weight_decay", float("inf")),
        ("schedule.base_learning_rate", 1e300),
        ("schedule.min_learning_rate", -1e-5),
        ("schedule.warmup_learning_rate", float("-inf")),
        ("augment.std", (0.2, 0.0, 0.2)),
        ("augment.mean", (0.5, 0.5, True)),
        ("augment.mixup_alpha", float("nan")),
        ("teacher.std", (0.2, 0.2, float("inf"))),
        ("train.max_steps", True),
        ("train.epochs", 10**12),
        ("log.peak_tflops", float("inf")),
        ("model.remat", "some"),
    ],
)
def test_values_out_of_bounds_are_refused(name, value):
    config = tiny_config()
    config.update_from_flattened_dict({name: value})
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        validate(config)


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("published", {"theirs": float("nan")}, "published: 'theirs' is nan: give a finite number"),
        ("model.overrides", {"depth": "6"}, "depth='6' of deit_tiny_distilled_patch16_224: give a whole number"),
        ("model.overrides", {"mlp_ratio": float("inf")}, "mlp_ratio=inf"),
        ("model.overrides", {"num_heads": 0}, "num_heads=0"),
        ("model.overrides", {"depth": {"a": 1}}, r"depth=\{'a': 1\} of deit_tiny.*: give a whole number"),
        ("teacher.overrides", {"depth": {"a": {"b": 1}}}, r"depth=\{'a': \{'b': 1\}\} of regnety_002"),
        ("published", {"theirs": {"a": 1}}, r"'theirs' is \{'a': 1\}: give a finite number"),
        ("model.overrides", {"drop_path_rate": 0.5}, "set config.model.drop_path_rate instead"),
        ("teacher.overrides", {"wm": True}, "wm=True of regnety_002"),
        ("teacher.overrides", {"num_classes": 3}, "the student's config.num_classes determines it"),
        ("teacher.overrides", {"folded": True}, "teacher.overrides.folded"),
        (
            "evaluation.extra",
            {"v2": {"source": "npz", "name": "", "path": 3, "split": ""}},
            "extra.v2.path=3: give a text",
        ),
        ("evaluation.extra", {"v2": 3}, "extra.v2 has the fields of no ConfigDict"),
        (
            "evaluation.extra",
            {"v2": {"source": "fashion_mnist_10k", "name": "", "path": "/photos", "split": "test"}},
            "extra.v2.path=/photos: config.evaluation.extra.v2.source is fashion_mnist_10k",
        ),
    ],
)
def test_wrong_values_in_free_sections_are_refused(section, value, message):
    config = tiny_config()
    *outer, name = section.split(".")
    with config.unlocked():
        for part in outer:
            config = config[part]
        config[name] = value
    config = tiny_config(**{section.replace(".", "__"): config[name]})
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_unknown_and_missing_fields_are_refused():
    config = tiny_config()
    with config.unlocked():
        config.train.epoch = 3
    with pytest.raises(
        ConfigError, match=r"config\.train\.epoch: there is no such field; the nearest is config\.train\.epochs"
    ):
        validate(config)
    with config.unlocked():
        del config.train.epoch, config.optimizer
    with pytest.raises(ConfigError, match=r"config has no field 'optimizer\.betas'"):
        validate(config)


def test_numpy_numbers_and_lists_are_accepted():
    config = tiny_config(schedule__base_learning_rate=np.float64(1e-3), optimizer__betas=[np.float32(0.5), 0.9])
    validate(config)


def test_an_unused_data_path_is_refused():
    with pytest.raises(ConfigError, match=r"data\.path=/photos: config\.data\.source is fashion_mnist_10k"):
        validate(tiny_config(data__path="/photos"))


def test_defaults_are_valid_and_recipes_are_checked():
    validate(default_config())
    config = tiny_config(teacher__weights="")
    config.teacher.recipe = tiny_teacher_config()
    validate(config)
    config.teacher.recipe.model.remat = "dots"
    with pytest.raises(ConfigError, match=r"^config\.teacher\.recipe\.model\.remat='dots': regnety_002 does not have"):
        validate(config)
    config.teacher.name = "deit_tiny_distilled_patch16_224"
    config.teacher.recipe = tiny_config(distillation__kind="none", teacher__weights="", model__name=config.teacher.name)
    with pytest.raises(ConfigError, match=r"^config\.teacher\.recipe\.distillation\.kind=none does not train"):
        validate(config)


@pytest.mark.parametrize("section", ["model", "teacher"])
def test_weights_without_a_moving_average_are_refused_with_the_callers_field(section):
    changes = {f"{section}__weights": "embedded", f"{section}__variables": "ema"}
    with pytest.raises(
        ConfigError, match=rf"^config\.{section}\.variables=ema: embedded weights have no moving average"
    ):
        validate(tiny_config(**changes))


def test_overrides_of_one_teacher_that_has_its_own_fields_are_refused(tmp_path):
    for weights in ("", str(tmp_path / "workdir")):
        config = tiny_config(teacher__weights=weights)
        config.teacher.recipe = None if weights else tiny_teacher_config()
        with config.teacher.each.unlocked():
            config.teacher.each["1"] = ConfigDict({"mean": (0.5, 0.5, 0.5)})
        validate(config)
        with config.teacher.each.unlocked():
            config.teacher.each["1"] = ConfigDict({"overrides": {"group_width": 4}})
        with pytest.raises(
            ConfigError, match=r"teacher\.each\.1\.overrides: this teacher's fields come from its recipe"
        ):
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
    config.teacher.weights, config.teacher.answers = "", "answers"
    with pytest.raises(ConfigError, match=r"config\.teacher\.answers and config\.teacher\.recipe exclude each other"):
        validate(config)
    config.teacher.answers = ""
    with pytest.raises(ConfigError, match="trains 'deit_tiny"):
        validate(config)


@pytest.mark.parametrize(("value", "message"), [(-(10**11), "at least 0"), (10**11, "at most 4294967295")])
def test_the_message_for_a_huge_number_names_the_violated_bound(value, message):
    for name in ("seed", "data.num_threads"):
        config = tiny_config()
        config.update_from_flattened_dict({name: value})
        with pytest.raises(ConfigError, match=f"config.{name}={value} must be .*{message}"):
            validate(config)


def test_configurations_of_the_paper_set_no_field_without_effect():
    assert len(FILES) > 4
    assert {name: found for name in ARGUMENTS if (found := without_effect(get_config(name)))} == {}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"optimizer__name": "sgd", "optimizer__betas": (0.8, 0.9)}, {"optimizer.betas": "optimizer.name is sgd"}),
        ({"optimizer__momentum": 0.5}, {"optimizer.momentum": "optimizer.name is adamw"}),
        ({"data__crop_scale": (0.5, 1.0)}, {"data.crop_scale": "data.train_crop is padded"}),
        ({"data__train_crop": "center", "data__crop_padding": 2}, {"data.crop_padding": "data.train_crop is center"}),
        ({"evaluation__protocol": "timm"}, {"evaluation.crop_ratio": "evaluation.protocol is timm"}),
        ({"distillation__tau": 3.0}, {"distillation.tau": "distillation.kind is hard"}),
        ({"augment__erase_probability": 0.0, "augment__erase_mode": "rand"},
         {"augment.erase_mode": "augment.erase_probability is 0"}),
        ({"augment__cutmix_alpha": 0.0, "augment__switch_probability": 0.1},
         {"augment.switch_probability": "mixup or cutmix is off"}),
        ({"data__held_out": 0.1}, {"data.held_out": "data.source is fashion_mnist_10k"}),
        ({"data__held_out": 0.1, "data__source": "folder"}, {}),
        ({"distillation__kind": "soft", "distillation__tau": 3.0, "optimizer__eps": 1e-7}, {}),
    ],
)  # fmt: skip
def test_fields_without_effect_are_reported_with_the_reason(changes, expected):
    assert dict(without_effect(tiny_config(**changes))) == expected


def test_some_fields_are_reported_only_if_the_command_line_sets_them():
    config = tiny_config(data__name="cifar10")
    assert without_effect(config) == []
    assert without_effect(config, ["data.name"]) == [("data.name", "data.source is fashion_mnist_10k")]
    config.teacher.weights = ""
    config.teacher.recipe = tiny_config(optimizer__momentum=0.5)
    assert ("teacher.recipe.optimizer.momentum", "optimizer.name is adamw") in without_effect(config)


@pytest.mark.parametrize(
    ("changes", "typed", "reason"),
    [
        ({"schedule__warmup_epochs": 0.0, "schedule__warmup_learning_rate": 1e-4}, "schedule.warmup_learning_rate",
         "schedule.warmup_epochs is 0"),
        ({"train__train_mode": False}, "model.drop_path_rate", "train.train_mode is False"),
        ({"train__train_mode": False, "model__patch_keep_rate": 0.5}, "model.patch_keep_rate", "train.train_mode is False"),
        ({"model__reset_heads": True}, "model.reset_heads", "model.weights is empty"),
        ({"teacher__top_k": 3}, "teacher.top_k", "teacher.record is empty"),
        ({"teacher__record_as": "logits"}, "teacher.record_as", "teacher.record is empty"),
        ({"augment__mix_probability": 0.0, "augment__mix_mode": "pair"}, "augment.mix_mode", "augment.mix_probability is 0"),
        ({"augment__mix_probability": 0.0, "augment__switch_probability": 0.1}, "augment.switch_probability",
         "augment.mix_probability is 0"),
        ({"model__name": "regnety_002", "model__weights": "x.pth", "model__regnet_init": "timm_0.3"}, "model.regnet_init",
         "model.weights is set"),
    ],
)  # fmt: skip
def test_typed_fields_without_effect_are_reported(changes, typed, reason):
    config = tiny_config(**changes)
    assert (typed, reason) in without_effect(config, [typed])
    if typed.startswith("teacher."):
        assert typed not in dict(without_effect(config, [typed], recording=True))
        config.teacher.record = "answers"
        assert typed not in dict(without_effect(config, [typed]))


def test_questionable_schedules_are_reported():
    assert questionable(tiny_config()) == []
    [warmup] = questionable(tiny_config(train__epochs=3, schedule__warmup_epochs=3.0))
    assert warmup.startswith("config.schedule.warmup_epochs=3 is not less than config.train.epochs=3: ")
    config = tiny_config(teacher__weights="")
    config.teacher.recipe = tiny_config(schedule__min_learning_rate=0.1)
    assert questionable(config) == [
        "config.teacher.recipe.schedule.min_learning_rate=0.1 is above the peak rate 0.0005, so the learning rate "
        "rises to the end"
    ]


def test_fields_of_the_recording_may_be_given_to_a_training_from_the_answers():
    changes = {"record_as": "logits", "top_k": 3, "fused": False, "on_change": "continue"}
    config = tiny_config(teacher__answers="answers", **{f"teacher__{name}": value for name, value in changes.items()})
    assert without_effect(config, [f"teacher.{name}" for name in changes]) == [
        ("teacher.on_change", "teacher.answers is set")
    ]


def test_only_teachers_from_a_workdir_or_a_program_have_their_own_overrides(tmp_path):
    (tmp_path / "workdir" / "checkpoints").mkdir(parents=True)
    (tmp_path / "foreign").mkdir()
    for name in ("config.json", "model.safetensors"):  # as saved by transformers and timm
        (tmp_path / "foreign" / name).touch()
    own = ("teacher.overrides", "a teacher from a workdir or a program has its own")
    (tmp_path / "it.jax").touch()
    for weights, expected in (
        ("workdir", [own]), ("foreign", []), ("gone.npz", []), ("workdir,x", [own]), ("it.jax", [own]),
    ):  # fmt: skip
        config = tiny_config(teacher__weights=str(tmp_path / weights))
        with config.teacher.unlocked():
            config.teacher.overrides.group_width = 4
        assert without_effect(config, ["teacher.overrides.group_width"]) == expected, weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "/photos"}, "config.unlabelled.path=/photos has no effect while config.unlabelled.source is empty"),
        ({"source": "foldr"}, "config.unlabelled.source='foldr' must be one of .*folder"),
        ({"source": "tfds"}, "config.unlabelled.source=tfds needs config.unlabelled.name"),
        (
            {"source": "fashion_mnist_10k", "path": "/x"},
            "unlabelled.path=/x: config.unlabelled.source is fashion_mnist_10k",
        ),
        ({"source": "folder", "share": 1.0}, r"config.unlabelled.share=1.0 must be above 0 and below 1"),
    ],
)
def test_impossible_unlabelled_images_are_refused(changes, message):
    config = tiny_config(**{f"unlabelled__{name}": value for name, value in changes.items()})
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_unlabelled_images_need_a_teacher():
    for kind in ("none", "labels"):
        config = tiny_config(unlabelled__source="folder", distillation__kind=kind, teacher__weights="")
        with pytest.raises(
            ConfigError,
            match=f"and config.distillation.kind is {kind}: set it to soft or hard, or set config.features.pairs",
        ):
            validate(config)
    validate(tiny_config(unlabelled__source="folder", unlabelled__path="/photos"))
    assert ("unlabelled.share", "unlabelled.source is empty") in without_effect(tiny_config(unlabelled__share=0.25))
