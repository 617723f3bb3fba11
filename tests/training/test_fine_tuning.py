"""The fine-tuning step: given weights, evaluation mode, a part of the parameters, labels for both heads."""

import jax
import numpy as np
import pytest

from deit_jax.config import ConfigError
from deit_jax.data.decoding import evaluation_crop
from deit_jax.data.loading import train_batches
from deit_jax.data.registry import open_source, train_crop
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.sharding import put_batch
from deit_jax.training.losses import DistillationLoss
from deit_jax.training.optimizer import parameter_names, trained
from deit_jax.training.plan import resolve
from deit_jax.training.program import build_augmentation, build_program
from deit_jax.training.step import step_keys
from tests.tiny import tiny_config, tiny_teacher_config

NO_TEACHER = {"distillation__kind": "none", "teacher__weights": ""}


def built(config, devices=1):
    """(program, host batches of two steps, plan), without parts that only take long to compile."""
    off = ("augment.erase_probability", "augment.mixup_alpha", "augment.cutmix_alpha")
    config.update_from_flattened_dict(dict.fromkeys(off, 0.0))
    source = open_source(config.data, "train")
    plan = resolve(config, num_images=len(source), data_classes=10)
    program = build_program(config, plan, make_mesh(jax.devices()[:devices], fsdp=config.parallel.fsdp))
    crop = train_crop(config.data, plan.image_size, config.evaluation)
    return program, list(train_batches(source, plan.order, crop, start_step=0, stop_step=2, num_threads=0)), plan


def run(program, batches, variables=None):
    """(state before, state after, metrics of each step), on the host."""
    state, history = program.init(variables), []
    before = jax.device_get(state)
    for batch in batches:
        state, metrics = program.train_step(state, None, put_batch(program.mesh, batch))
        history.append(jax.device_get(metrics))
    return before, jax.device_get(state), history


def leaves(tree):
    return dict(zip(parameter_names(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))


def random_variables(program):
    """Returns weights with the model's shapes, in host memory, with positive variances."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: random.uniform(0.05, 0.1, leaf.shape).astype(leaf.dtype), program.abstract_state.variables
    )


@pytest.mark.parametrize("fsdp", [1, 4])
def test_init_uses_given_weights_replicated_or_sharded(fsdp):
    program, _, _ = built(tiny_config(**NO_TEACHER, parallel__fsdp=fsdp, parallel__fsdp_min_size=0), devices=2 * fsdp)
    given = random_variables(program)
    state = program.init(given)
    for leaf, like in zip(jax.tree.leaves(state), jax.tree.leaves(program.abstract_state), strict=True):
        assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype) and leaf.sharding.is_equivalent_to(
            like.sharding, leaf.ndim
        )
    for tree in (state.variables, state.ema):
        for found, expected in zip(jax.tree.leaves(tree), jax.tree.leaves(given), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(state.opt_state))
    assert int(state.step) == 0


def expected_loss(config, program, plan, batch, variables):
    """Returns the cross-entropies of the first step's augmented images, computed by the forward pass of the evaluation."""
    augment = build_augmentation(config, plan)
    images, targets = jax.jit(augment)(step_keys(config.seed, 0)[0], batch["image"], batch["label"])
    outputs = jax.jit(program.model.apply)(variables, images)
    logs = [np.asarray(jax.nn.log_softmax(it), np.float64) for it in outputs[1:] if it is not None]
    return [-(np.asarray(targets) * log).sum(-1).mean() for log in logs]


def test_without_train_mode_a_convnet_runs_in_evaluation_mode():
    config = tiny_teacher_config()
    config.train.train_mode, config.model.dropout_rate = False, 0.5
    program, batches, plan = built(config)
    given = random_variables(program)
    before, after, history = run(program, batches, given)
    assert jax.tree.all(jax.tree.map(np.array_equal, before.batch_stats, after.batch_stats))
    np.testing.assert_allclose(
        history[0]["loss"], expected_loss(config, program, plan, batches[0], given)[0], rtol=1e-4
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, before.batch_stats, after.ema["batch_stats"]))
    moved = {name: np.abs(leaf - leaves(before.params)[name]).max() for name, leaf in leaves(after.params).items()}
    assert min(moved.values()) > 0  # still differentiated, BatchNorm's scale and bias too


def test_labels_train_both_heads_without_dropout_in_evaluation_mode():
    config = tiny_config(
        distillation__kind="labels", teacher__weights="", distillation__alpha=0.25, train__train_mode=False,
        model__drop_path_rate=0.9, model__dropout_rate=0.5,
    )  # fmt: skip
    program, batches, plan = built(config)
    before, after, history = run(program, batches)
    class_loss, token_loss = expected_loss(config, program, plan, batches[0], before.variables)
    np.testing.assert_allclose(history[0]["class_loss"], class_loss, rtol=1e-4)
    np.testing.assert_allclose(history[0]["distillation_loss"], token_loss, rtol=1e-4)
    np.testing.assert_allclose(history[0]["loss"], 0.75 * class_loss + 0.25 * token_loss, rtol=1e-4)
    assert "teacher_agreement" not in history[0]
    moved = np.abs(after.params["head_dist"]["kernel"] - before.params["head_dist"]["kernel"])
    assert moved.max() > 0


@pytest.mark.parametrize("kind", ["labels", "labels_mean", "labels_class"])
def test_labels_kinds_need_a_distillation_token(kind):
    config = tiny_config(distillation__kind=kind, teacher__weights="", model__name="deit_tiny_patch16_224")
    with pytest.raises(
        ConfigError, match=rf"config.distillation.kind={kind} .* which deit_tiny_patch16_224 does not have"
    ):
        built(config)
    outputs = type("Output", (), {"class_logits": np.zeros((2, 3)), "distillation_logits": None})
    with pytest.raises(ValueError, match="needs a model with a distillation token"):
        DistillationLoss(kind)(outputs, np.zeros((2, 3)), None)


def test_an_untrained_head_does_not_affect_the_prediction():
    fields = {"distillation__kind": "labels_class", "teacher__weights": ""}
    with pytest.raises(ConfigError, match=r"labels_class does not train .*: set config\.model\.fusion=class"):
        built(tiny_config(**fields))
    config = tiny_config(**fields, model__fusion="class", optimizer__trainable=(r"^(?!head_dist/)",))
    program, _, _ = built(config)
    assert program.model.fusion == "class"
    params = program.abstract_state.params
    moving = jax.tree.leaves(trained(params, config.optimizer.trainable))
    still = [name for name, moves in zip(parameter_names(params), moving, strict=True) if not moves]
    assert still == ["head_dist/bias", "head_dist/kernel"]


# The parameters of the tiny RegNetY that FixRes tunes: the classifier and the BatchNorms that end the last stage's blocks.
FIXRES = (r"^head/", r"^s2/b\d+/(conv3|downsample)/bn/")


@pytest.mark.parametrize("name", ["adamw", pytest.param("sgd", marks=pytest.mark.long)])
def test_frozen_parameters_do_not_change_and_have_no_optimizer_state(name):
    config = tiny_teacher_config()
    config.optimizer.name, config.optimizer.weight_decay, config.optimizer.trainable = name, 0.5, FIXRES
    config.train.train_mode, config.train.clip_norm = False, 1e-2
    program, batches, _ = built(config)
    before, after, history = run(program, batches, random_variables(program))
    ours = {parameter for parameter in leaves(before.params) if parameter.startswith("head/")}
    ours |= {f"s2/b1/{layer}/bn/{leaf}" for layer in ("conv3", "downsample") for leaf in ("scale", "bias")}
    for parameter, leaf in leaves(before.params).items():
        same = np.array_equal(leaf, leaves(after.params)[parameter])
        assert same == (parameter not in ours), parameter
        if parameter not in ours:
            np.testing.assert_array_equal(leaf, leaves(after.ema["params"])[parameter])
    sizes = sum(leaves(before.params)[parameter].size for parameter in ours)
    copies = 2 if name == "adamw" else 1
    assert sum(leaf.size for leaf in leaves(after.opt_state).values() if leaf.ndim) == copies * sizes
    assert all(np.isfinite(value) for metrics in history for value in metrics.values())
    assert all(metrics["grad_norm"] > 0 for metrics in history)


@pytest.mark.long
def test_trainable_parameters_are_updated_as_when_all_are_trained():
    """With plain gradient descent the update is the trained part of the same gradient."""
    plain = {"optimizer__name": "sgd", "optimizer__momentum": 0.0, "optimizer__weight_decay": 0.0, "ema__decay": 0.0}
    results = []
    for trainable in ((".*",), ("^head/",)):
        config = tiny_config(**NO_TEACHER, **plain, optimizer__trainable=trainable)
        program, batches, _ = built(config)
        results.append(run(program, batches[:1]))
    whole, part = (leaves(after.params) for _, after, _ in results)
    np.testing.assert_allclose(part["head/kernel"], whole["head/kernel"], rtol=1e-6, atol=1e-8)
    assert results[1][2][0]["grad_norm"] < results[0][2][0]["grad_norm"]


def test_training_all_keeps_the_unpartitioned_optimizer_state():
    program, _, _ = built(tiny_config(**NO_TEACHER))
    names = parameter_names(program.abstract_state.opt_state)
    assert "0/mu/head/kernel" in names and not any("inner_states" in name for name in names)


def test_trainable_patterns_without_a_match_raise():
    with pytest.raises(ConfigError, match=r"trainable=\('classifier',\) matches no parameter name; .*blocks_0/"):
        built(tiny_config(**NO_TEACHER, optimizer__trainable=("classifier",)))


@pytest.mark.parametrize("protocol", ["deit", "timm", "mmpretrain"])
def test_center_crop_in_training_equals_that_of_evaluation(protocol):
    config = tiny_config(data__train_crop="center", evaluation__protocol=protocol, evaluation__crop_ratio=0.8)
    crop = train_crop(config.data, 28, config.evaluation)
    assert crop == evaluation_crop(config.evaluation, 28)
    with pytest.raises(ValueError, match="pass the evaluation section"):
        train_crop(config.data, 28)


def test_a_step_uses_the_center_of_its_images():
    config = tiny_config(**NO_TEACHER, data__train_crop="center", evaluation__crop_ratio=0.8)
    source = open_source(config.data, "train")
    plan = resolve(config, num_images=len(source), data_classes=10)
    crop = train_crop(config.data, 28, config.evaluation)
    batch = next(iter(train_batches(source, plan.order, crop, start_step=0, stop_step=1, num_threads=0)))
    pictures = {evaluation_crop(config.evaluation, 28)(_rgb(source[i].image)).tobytes() for i in range(len(source))}
    assert all(image.tobytes() in pictures for image in batch["image"])


def _rgb(image):
    return np.repeat(np.asarray(image).reshape(28, 28, -1)[:, :, :1], 3, axis=2)
