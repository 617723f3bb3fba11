"""The training step on tiny models: its result must not depend on devices, sharding or microbatches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deit_jax.aot.program_report import collectives_of
from deit_jax.data.loading import train_batches
from deit_jax.data.registry import train_crop
from deit_jax.data.unlabelled import open_training_images
from deit_jax.modes.compile import Step
from deit_jax.modes.train import load_teacher
from deit_jax.parallel.host_rows import HostRows
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.sharding import put_batch, replicated
from deit_jax.training.divergence import PRIVATE_METRICS
from deit_jax.training.plan import plan_of
from deit_jax.training.program import build_program
from tests.tiny import tiny_config, tiny_teacher_config

ALONE = {"distillation__kind": "none", "teacher__weights": ""}


def small_config(**changes):
    """Returns a configuration that compiles quickly: one block, and no erasing (tested in tests/augment)."""
    config = tiny_config(augment__erase_probability=0.0, **changes)
    config.model.overrides.depth = 1
    return config


def run_steps(config, tmp_path, *, devices=1, steps=2, dealt=True):
    """`steps` steps on the given number of devices: (state before, state after, metrics of each step)."""
    source = open_training_images(config)
    plan = plan_of(config, source)
    mesh = make_mesh(jax.devices()[:devices], fsdp=config.parallel.fsdp)
    teacher = load_teacher(config, tmp_path)
    program = build_program(config, plan, mesh, teacher=teacher)
    frozen = None if teacher is None else jax.device_put(teacher.for_step(mesh), replicated(mesh))
    state, history = program.init(), []
    before = jax.device_get(state)
    crop = train_crop(config.data, plan.image_size)
    for batch in train_batches(source, plan.order, crop, start_step=0, stop_step=steps, num_threads=0, dealt=dealt):
        state, metrics = program.train_step(state, frozen, put_batch(mesh, batch))
        history.append(jax.device_get(metrics))
    return before, jax.device_get(state), history


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    return run_steps(small_config(), tmp_path_factory.mktemp("teacher"))


def test_rows_grouped_on_devices_give_a_bit_identical_step(tmp_path, monkeypatch):
    config = small_config(**ALONE)
    _, *expected = run_steps(config, tmp_path, devices=4)
    apart = {0: HostRows(((0, config.train.batch_size),), dealt=False)}  # as with several hosts that share a block
    monkeypatch.setattr("deit_jax.training.program.host_rows", lambda *_: apart)
    _, *found = run_steps(config, tmp_path, devices=4, dealt=False)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    _, *undealt = run_steps(config, tmp_path, devices=4)
    assert difference(undealt[0].params, expected[0].params) > 0


def difference(one, other) -> float:
    """Returns the largest absolute difference between two trees."""
    return max(
        float(np.max(np.abs(a - b), initial=0.0))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def assert_same_run(one, other):
    (_, state, history), (_, other_state, other_history) = one, other
    for metrics, other_metrics in zip(history, other_history, strict=True):
        for name, value in metrics.items():
            np.testing.assert_allclose(other_metrics[name], value, rtol=2e-4, atol=1e-6, err_msg=name)
    # Adam divides by the root of the second moment: a rounding error in a gradient near 0 can move a weight by a learning rate.
    assert difference(state.params, other_state.params) < 2e-3
    assert difference(state.ema, other_state.ema) < 2e-3


def test_a_step_updates_every_parameter_and_the_counter(one_device):
    before, after, history = one_device
    assert int(after.step) == 2
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda a, b: np.abs(a - b).max(), before.params, after.params)
    ):
        assert leaf > 0, jax.tree_util.keystr(path)
    assert all(np.isfinite(value) for metrics in history for value in metrics.values())
    expected = 0.5 * history[0]["class_loss"] + 0.5 * history[0]["distillation_loss"]
    np.testing.assert_allclose(history[0]["loss"], expected, rtol=1e-6)


def test_the_moving_average_follows_the_weights(one_device):
    before, after, _ = one_device
    name = ("head", "kernel")
    start, end = (state.params[name[0]][name[1]] for state in (before, after))
    average = after.ema["params"][name[0]][name[1]]
    assert np.abs(average - start).max() > 0
    assert np.linalg.norm(average - start) < np.linalg.norm(end - start)


@pytest.mark.long  # tests/end_to_end covers eight, and two with two processes
def test_two_devices_give_the_same_run(one_device, tmp_path):
    assert_same_run(one_device, run_steps(small_config(), tmp_path, devices=2))


def test_kept_patches_do_not_depend_on_devices_or_microbatches(tmp_path):
    config = small_config(model__patch_keep_rate=0.5, **ALONE)
    one = run_steps(config, tmp_path)
    config.train.accumulation_steps = 2
    assert_same_run(one, run_steps(config, tmp_path, devices=4))
    config.model.patch_keep_rate, config.train.accumulation_steps = 1.0, 1
    assert difference(run_steps(config, tmp_path)[1].params, one[1].params) > 1e-3


def test_sharded_parameters_give_the_same_run(one_device, tmp_path):
    config = small_config(parallel__fsdp=4, parallel__fsdp_min_size=0)
    assert_same_run(one_device, run_steps(config, tmp_path, devices=8))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_parameters_that_are_gathered_once_give_the_same_run(one_device, tmp_path, accumulation):
    split = dict(parallel__fsdp=4, parallel__fsdp_min_size=0, parallel__gather_once=True)
    config = small_config(**split, train__accumulation_steps=accumulation)
    assert_same_run(one_device, run_steps(config, tmp_path, devices=8 // accumulation))


@pytest.mark.compiler
def test_parameters_that_are_gathered_once_are_gathered_in_the_compute_dtype():
    config = tiny_config(
        parallel__fsdp=4, parallel__fsdp_min_size=0, parallel__gather_once=True, compute_dtype="bfloat16", **ALONE
    )
    step = Step(config, None, make_mesh(jax.devices()[:4], fsdp=4), 64, 10)
    plan, program, teacher = step.build(32)
    text = program.train_step.lower(*step.arguments(plan, program, teacher)).as_text()
    kernel = program.abstract_state.params["blocks_0"]["mlp"]["fc1"]["kernel"]
    assert not kernel.sharding.is_fully_replicated
    shape = "x".join(map(str, kernel.shape))
    constraints = [line for line in text.splitlines() if "sharding_constraint" in line and f"tensor<{shape}x" in line]
    assert any(f"tensor<{shape}xbf16>" in line for line in constraints)


FEATURES = dict(
    features__pairs=("patch_1:s1", "distillation_1:s2", "class_1:final"),
    features__mse=1.0,
    features__local_guidance=0.5,
    distillation__kind="soft",
)


@pytest.mark.parametrize("accumulation", [1, pytest.param(4, marks=pytest.mark.long)])
def test_features_on_sharded_devices_and_in_microbatches_give_the_same_run(tmp_path, accumulation):
    alone = run_steps(small_config(**FEATURES), tmp_path)
    changes = dict(parallel__fsdp=4, parallel__fsdp_min_size=0) if accumulation == 1 else {}
    config = small_config(**FEATURES, **changes, train__accumulation_steps=accumulation)
    other = run_steps(config, tmp_path, devices=8 if accumulation == 1 else 1)
    assert_same_run(alone, other)
    before, after, history = alone
    assert difference(after.projections, other[1].projections) < 2e-3
    assert all(difference(before.projections[name], after.projections[name]) > 0 for name in before.projections)
    first = history[0]
    parts = 0.5 * first["class_loss"] + 0.5 * first["distillation_loss"] + first["feature_mse"]
    np.testing.assert_allclose(first["loss"], parts + 0.5 * first["feature_local_guidance"], rtol=1e-6)


def test_features_of_a_transformer_with_everything_else_on(tmp_path):
    pairs = ("patch_1:block_2", "class_1:block_1", "distillation_1:final")
    config = small_config(
        **FEATURES | {"features__pairs": pairs, "distillation__kind": "labels"},
        teacher__name="deit_tiny_patch16_224", compute_dtype="bfloat16", model__scan_blocks=True, model__remat="full",
        train__accumulation_steps=2, train__clip_norm=0.1, on_nonfinite="skip", teacher__mean=(0.5, 0.5, 0.5),
    )  # fmt: skip
    with config.unlocked():
        config.teacher.overrides = dict(patch_size=7, embed_dim=24, depth=2, num_heads=2)
    before, after, history = run_steps(config, tmp_path, devices=2)
    assert int(after.step) == 2 and all(np.isfinite(value) for metrics in history for value in metrics.values())
    # The class token of a teacher without a distillation token.
    widths = {name: layer["kernel"].shape for name, layer in after.projections.items()}
    assert widths == {"patch_1-patch_2": (16, 24), "class_1-class_1": (16, 24), "distillation_1-final": (16, 24)}
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(after.projections))
    assert all(difference(before.projections[name], after.projections[name]) > 0 for name in widths)
    parts = 0.5 * history[0]["class_loss"] + 0.5 * history[0]["distillation_loss"] + history[0]["feature_mse"]
    np.testing.assert_allclose(history[0]["loss"], parts + 0.5 * history[0]["feature_local_guidance"], rtol=1e-5)


@pytest.mark.compiler
def test_logits_stay_with_their_images_if_heads_are_sharded():
    """Otherwise XLA shards the logits by class, like their head, and reduces the sums of the softmax across devices."""
    config = tiny_config(
        parallel__fsdp=4, parallel__fsdp_min_size=0, num_classes=80, distillation__kind="labels", ema__decay=0.0
    )
    step = Step(config, None, make_mesh(jax.devices()[:4], fsdp=4), 64, 80)
    plan, program, teacher = step.build(32)
    text = program.train_step.lower(*step.arguments(plan, program, teacher)).compile().as_text()
    kinds = [collective.kind for collective in collectives_of(text, 4)]
    assert "all-gather" in kinds and "all-to-all" not in kinds
    assert kinds.count("all-reduce") == 2  # the gradients, the metrics


@pytest.mark.long
def test_microbatches_give_the_same_run(one_device, tmp_path):
    assert_same_run(one_device, run_steps(small_config(train__accumulation_steps=4), tmp_path))


def test_four_microbatches_of_8_have_the_gradient_of_a_batch_of_32(tmp_path):
    # Plain gradient descent at a large rate: the update is the gradient.
    plain = {"optimizer__name": "sgd", "optimizer__momentum": 0.0, "optimizer__weight_decay": 0.0}
    plain |= {"schedule__warmup_learning_rate": 10.0, "ema__decay": 0.0, **ALONE}
    runs = [
        run_steps(small_config(**plain, train__accumulation_steps=count), tmp_path / str(count), steps=1)
        for count in (1, 4)
    ]
    (whole, metrics), (parts, parts_metrics) = (
        (jax.tree.map(np.subtract, after.params, before.params), history[0]) for before, after, history in runs
    )
    size = optax.tree.norm(whole)
    assert optax.tree.norm(jax.tree.map(np.subtract, whole, parts)) <= 1e-5 * size
    np.testing.assert_allclose(size, 10 * metrics["grad_norm"], rtol=1e-4)
    np.testing.assert_allclose(parts_metrics["loss"], metrics["loss"], rtol=1e-5)


def test_unlabelled_rows_in_unequal_microbatches_have_the_gradient_of_the_whole_batch(tmp_path):
    plain = {"optimizer__name": "sgd", "optimizer__momentum": 0.0, "optimizer__weight_decay": 0.0, "ema__decay": 0.0}
    plain |= {
        "schedule__warmup_learning_rate": 10.0,
        "unlabelled__source": "fashion_mnist_10k",
        "data__images_per_class": 9,
    }
    # On two devices, microbatch 0 is rows 0 to 3 and 16 to 19: mixing groups of labelled images.
    runs = [
        run_steps(small_config(**plain, train__accumulation_steps=count), tmp_path, devices=devices, steps=1)
        for devices, count in ((1, 1), (2, 4))
    ]
    (whole, metrics), (parts, parts_metrics) = (
        (jax.tree.map(np.subtract, after.params, before.params), history[0]) for before, after, history in runs
    )
    assert optax.tree.norm(jax.tree.map(np.subtract, whole, parts)) <= 1e-5 * optax.tree.norm(whole)
    for name in ("loss", "class_loss", "distillation_loss", "teacher_agreement"):
        np.testing.assert_allclose(parts_metrics[name], metrics[name], rtol=1e-5)
    assert 1.5 < metrics["class_loss"] < 3.5  # not half of ln 10


def test_microbatches_on_several_devices_give_the_same_run(one_device, tmp_path):
    assert_same_run(one_device, run_steps(small_config(train__accumulation_steps=2), tmp_path, devices=4))


@pytest.mark.long
def test_another_seed_gives_another_run(one_device, tmp_path):
    _, state, _ = run_steps(small_config(seed=1), tmp_path)
    assert difference(one_device[1].params, state.params) > 1e-2


@pytest.fixture(scope="module")
def convnet(tmp_path_factory):
    return run_steps(tiny_teacher_config(), tmp_path_factory.mktemp("convnet"))


def test_a_convnet_updates_its_running_statistics(convnet):
    before, after, history = convnet
    names = {"loss", "class_loss", "grad_norm", "learning_rate", *PRIVATE_METRICS}
    assert set(history[0]) == names
    assert difference(before.batch_stats, after.batch_stats) > 1e-3
    # The moving average covers BatchNorm's statistics too: v = d * v + (1 - d) * p, twice.
    one, two, average = (
        s["stem"]["bn"]["mean"] for s in (before.batch_stats, after.batch_stats, after.ema["batch_stats"])
    )
    assert np.abs(average - one).max() > 0
    assert np.linalg.norm(average - one) < np.linalg.norm(two - one)


def test_several_devices_share_batchnorm_statistics(convnet, tmp_path):
    four = run_steps(tiny_teacher_config(), tmp_path, devices=4)
    np.testing.assert_allclose(convnet[2][0]["loss"], four[2][0]["loss"], rtol=1e-5)
    assert difference(convnet[1].batch_stats, four[1].batch_stats) < 1e-4


def test_clipping_bounds_the_update_of_sgd_and_bfloat16_compute_keeps_float32_state(tmp_path):
    changes = {"optimizer__name": "sgd", "optimizer__weight_decay": 0.0, "train__clip_norm": 1e-3, "ema__decay": 0.0}
    changes["compute_dtype"] = "bfloat16"
    before, after, history = run_steps(small_config(**changes, **ALONE), tmp_path, steps=1)
    moved = np.sqrt(
        sum(np.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (before.params, after.params)), strict=True))
    )
    assert history[0]["grad_norm"] > 1e-2  # measured before clipping
    # Nesterov's first step is (1 + momentum) times the gradient.
    np.testing.assert_allclose(moved, 1.9 * 1e-3 * history[0]["learning_rate"], rtol=1e-3)
    assert after.ema is None
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
    assert np.isfinite(history[0]["loss"])
