import pytest

from deit_jax.config_unused import without_effect
from deit_jax.paper.commands import FILES
from tests.recipes.programs import ARGUMENTS, get_config
from tests.tiny import tiny_config


def test_no_configuration_of_the_paper_sets_a_field_without_effect():
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
def test_fields_without_effect_are_named_with_the_reason(changes, expected):
    assert dict(without_effect(tiny_config(**changes))) == expected


def test_some_fields_are_named_only_if_the_command_line_has_them():
    config = tiny_config(data__name="cifar10")
    assert without_effect(config) == []
    assert without_effect(config, ["data.name"]) == [("data.name", "data.source is fashion_mnist_10k")]
    config.teacher.weights = ""
    config.teacher.recipe = tiny_config(optimizer__momentum=0.5)
    assert ("teacher.recipe.optimizer.momentum", "optimizer.name is adamw") in without_effect(config)


def test_only_teachers_of_a_workdir_have_their_own_overrides(tmp_path):
    (tmp_path / "workdir" / "checkpoints").mkdir(parents=True)
    (tmp_path / "foreign").mkdir()
    for name in ("config.json", "model.safetensors"):  # as transformers and timm save
        (tmp_path / "foreign" / name).touch()
    own = ("teacher.overrides", "a teacher of a workdir has its own")
    for weights, expected in (("workdir", [own]), ("foreign", []), ("gone.npz", []), ("workdir,x", [own])):
        config = tiny_config(teacher__weights=str(tmp_path / weights))
        with config.teacher.unlocked():
            config.teacher.overrides.group_width = 4
        assert without_effect(config, ["teacher.overrides.group_width"]) == expected, weights
