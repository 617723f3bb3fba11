"""Every argument of every configuration of the paper builds, validates, and traces its train step at full size."""

import jax
import numpy as np
import pytest

from deit_jax.config import MUST_BE_GIVEN, ConfigError
from deit_jax.config_check import validate
from deit_jax.data.known_sets import KNOWN_SETS
from deit_jax.data.sampling import TrainOrder
from deit_jax.modes.train import train
from deit_jax.training.optimizer import parameter_names
from deit_jax.training.plan import sizes_of_mixing

from .programs import ARGUMENTS, CONFIGS, Tracer, get_config, program_key, quick_to_trace, without_user

TABLE_6_CLASSES = {
    "imagenet2012": 1000, "i_naturalist2018": 8142, "i_naturalist2019": 1010, "oxford_flowers102": 102, "cars196": 196,
    "cifar100": 100, "cifar10": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def tracer():
    return Tracer()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_argument_is_valid_with_the_weights_of_its_command(name, tmp_path):
    config = get_config(name)
    needs_teacher = config.distillation.kind in ("soft", "hard")
    file, words = name.split(":")
    continues = (
        (file == "transfer" and "scratch" not in words) or file == "finetune" or ("384px" in words and file != "deit")
    )
    assert (config.model.weights == MUST_BE_GIVEN) == continues
    validate(without_user(config))
    if needs_teacher:
        with pytest.raises(ConfigError, match=r"set config\.teacher\.weights"):
            validate(config)
        config.teacher.weights = "random"
    if continues:
        with pytest.raises(ConfigError, match=r"set config\.model\.weights"):
            train(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    assert config.num_classes == TABLE_6_CLASSES[config.data.name]
    validate(get_config(f"{name},runlocal"))
    # the dataset is large enough for its batches
    order = [config.train.batch_size, config.data.repeats, *sizes_of_mixing(config)]
    assert config.train.batch_size % 16 == 0  # the devices of launch/tpu_vm.sh's slice
    assert order[2] == config.augment.max_group_size and order[3] == 4  # as in the authors' runs
    assert TrainOrder(KNOWN_SETS[config.data.name].train_images, *order, 0).steps_per_epoch > 0


def first_of_each_form():
    """Returns the argument with the smallest networks for each form of program."""
    first = {}
    for name in sorted(ARGUMENTS, key=lambda name: ("tiny" not in name and "_002" not in name, "small" not in name)):
        first.setdefault(program_key(quick_to_trace(get_config(name)), sizes=False), name)
    return first.values()


FIRST_OF_EACH_FORM = set(first_of_each_form())


@pytest.mark.parametrize(
    "name",
    [name if name in FIRST_OF_EACH_FORM else pytest.param(name, marks=pytest.mark.long) for name in ARGUMENTS],
)
def test_every_argument_traces_its_full_size_step(tracer, name):
    config = quick_to_trace(get_config(name))
    program, state, metrics = tracer.trace(config)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), program.abstract_state
    )
    assert metrics["loss"].shape == () and metrics["loss"].dtype == np.float32
    # Without a teacher it is the loss of the second head, if that is trained.
    assert ("distillation_loss" in metrics) == (config.distillation.kind not in ("none", "labels_class"))
    heads = [leaf for name, leaf in zip(parameter_names(state.params), jax.tree.leaves(state.params), strict=True)
             if name.startswith("head") and name.endswith("bias")]  # fmt: skip
    assert {head.shape for head in heads} == {(program.model.num_classes,)}
    assert len(heads) == 1 + ("distilled" in config.model.name)


@pytest.mark.parametrize("name", ["deit:tiny", pytest.param("finetune:384px,distilled", marks=pytest.mark.long)])
def test_it_also_traces_as_written(tracer, name):
    program, state, _ = tracer.trace(without_user(get_config(name)))
    assert jax.tree.structure(state) == jax.tree.structure(program.abstract_state)


@pytest.mark.parametrize("file", CONFIGS)
def test_the_default_argument_is_valid_and_a_wrong_one_raises(file):
    module = CONFIGS[file]
    validate(without_user(module.get_config()))
    with pytest.raises(
        ConfigError, match=rf"configs/{file}\.py:runlokal: 'runlokal' is unknown, the nearest is 'runlocal'"
    ):
        module.get_config("runlokal")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deit:tiny,small", "'tiny' and 'small' exclude each other"),
        ("deit:vit_base,distilled", "vit_base has no distillation token"),
        ("distillation:token_labels,base,regnety_160", "token_labels has no teacher"),
        ("distillation:token,base,384px,500", "epochs apply to the training at 224 pixels"),
        ("transfer:cars,base,scratch", "scratch is for cifar10"),
        ("transfer:cifar10,regnety_160,distilled", "a RegNetY has no distillation token"),
        (
            "transfer:cars,base,teacher",
            "teacher is a way to fine-tune a distilled model, as in cars,base,distilled,teacher",
        ),
        ("transfer:cifar10,base,distilled,scratch,class_head", "class_head is a way to fine-tune a distilled model"),
    ],
)
def test_words_that_exclude_each_other_raise(name, message):
    with pytest.raises(ConfigError, match=message):
        get_config(name)


def test_table_9s_other_column():
    config = get_config("deit:vit_base")
    assert (config.train.epochs, config.train.batch_size, config.train.clip_norm) == (300, 4096, 1.0)
    assert config.schedule.base_learning_rate * config.train.batch_size / config.schedule.base_batch_size == 3e-3
    assert (config.optimizer.name, config.optimizer.weight_decay, config.schedule.warmup_epochs) == ("adamw", 0.3, 3.4)
    assert (config.model.dropout_rate, config.model.drop_path_rate, config.data.repeats) == (0.1, 0.0, 1)
    off = ("rand_augment", "mixup_alpha", "cutmix_alpha", "erase_probability", "label_smoothing")
    assert not any(config.augment[name] for name in off)


def test_fine_tuning_matches_the_released_readme():
    config = get_config("finetune:384px,distilled")
    assert (config.image_size, config.train.batch_size, config.train.epochs, config.train.train_mode) == (
        384,
        512,
        30,
        False,
    )
    assert config.schedule.base_learning_rate == config.schedule.min_learning_rate == 5e-6
    assert config.optimizer.weight_decay == 1e-8 and sizes_of_mixing(config) == (32, 4)
    assert config.augment.rand_augment and config.data.repeats == 3  # as in pre-training
    assert get_config("finetune:384px,distilled,train_mode").train.train_mode


def test_changes_of_the_rows_of_table_8():
    default = get_config("ablation:default").to_dict()
    changed = {name: get_config(f"ablation:{name}").to_dict() for name in CONFIGS["ablation"].CHANGES}
    assert changed["no_mixup"]["augment"] == default["augment"] | {"mixup_alpha": 0.0}
    assert changed["no_repeated_augmentation"]["data"] == default["data"] | {"repeats": 1}
    assert changed["sgd_finetuning"]["optimizer"] == default["optimizer"]
    assert get_config("ablation:sgd_finetuning,384px").optimizer.name == "sgd"
    assert get_config("ablation:sgd,384px").optimizer.name == "adamw"
    assert get_config("ablation:no_mixup,384px").augment.mixup_alpha == 0.0
    assert get_config("ablation:ema,384px").model.variables == "ema"
    # Both readings of the row without RandAugment; the released code's --aa '' switches ColorJitter on.
    off = default["augment"] | {"rand_augment": ""}
    assert changed["no_rand_augment"]["augment"] == off
    assert changed["no_rand_augment_jitter"]["augment"] == off | {"color_jitter": 0.4}
    both = [get_config(f"ablation:{word}") for word in ("no_rand_augment", "no_rand_augment_jitter")]
    assert list(both[0].published.values()) == list(both[1].published.values()) == [79.6]


def test_transfer_of_a_distilled_model_in_the_released_way_or_the_authors_two():
    released = get_config("transfer:inat18,base,distilled")
    assert (released.distillation.kind, released.model.fusion) == ("labels_mean", "logits")
    alone = get_config("transfer:inat18,base,distilled,class_head")
    assert (alone.distillation.kind, alone.model.fusion) == ("labels_class", "class")
    assert alone.optimizer.trainable == (r"^(?!head_dist/)",)
    taught = get_config("transfer:inat18,distilled,teacher,base")
    assert (taught.distillation.kind, taught.distillation.alpha, taught.teacher.name) == ("hard", 0.5, "regnety_160")
    teacher = get_config("transfer:inat18,regnety_160")
    assert (teacher.model.name, teacher.num_classes, teacher.distillation.kind) == ("regnety_160", 8142, "none")
    for config in (alone, taught):  # the table does not specify which
        assert config.published.to_dict() == released.published.to_dict() != {}


def test_learning_rates_and_train_mode_of_transfer():
    def peak(config):
        return config.schedule.base_learning_rate * config.train.batch_size / config.schedule.base_batch_size

    cifar, inat = get_config("transfer:cifar10,base"), get_config("transfer:inat19,base")
    assert peak(cifar) == pytest.approx(0.015) and peak(inat) == pytest.approx(7.5e-5)
    cifar.schedule.base_batch_size = 768  # the other reading
    assert peak(cifar) == pytest.approx(0.01)
    assert (cifar.model.drop_path_rate, inat.model.drop_path_rate) == (0.0, 0.1)
    assert cifar.train.train_mode and inat.train.train_mode


def test_a_run_shows_its_published_figures():
    shown = dict(get_config("deit:distilled,base").published)  # in any order
    assert shown == {
        "published: DeiT-B distilled, ImageNet (Table 5)": 83.4,
        "published: DeiT-B distilled, ReaL (Table 5)": 88.3,
        "published: DeiT-B distilled, V2 (Table 5)": 73.2,
    }
    assert not get_config("deit:base,runlocal").published
