import functools
from types import SimpleNamespace

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.models import create_model
from deit_jax.models.ensemble import Ensemble
from deit_jax.models.layers import Dropout
from deit_jax.models.protocol import fused_form, inference_form, on_mesh
from deit_jax.models.regnet import ConvBatchNorm, RegNet
from deit_jax.models.regnet_fused import FUSED

from .timm_names import TRAINED_STATISTICS, model_images, our_variables, photographs

# Three stages of 16, 24 and 48 channels: 1, 2 and 2 blocks.
TINY = {"num_classes": 5, "w0": 16, "wa": 8.0, "wm": 1.8, "depth": 5, "group_width": 8, "stem_width": 16}


@pytest.fixture(scope="module")
def tiny(filled):
    """A small model, its variables, and images."""
    model = RegNet(**TINY)
    images = np.random.RandomState(1).normal(0.5, size=(8, 32, 32, 3)).astype(np.float32)
    return model, filled(model, images), images


@pytest.fixture(scope="module")
def answer(tiny):
    """The logits of the small model in evaluation."""
    model, variables, images = tiny
    return np.asarray(jax.jit(model.apply)(variables, images).logits)


@pytest.fixture(scope="module")
def trained(tiny):
    """Logits, statistics and outputs of the convolutions after one pass in training mode."""
    model, variables, images = tiny
    captures = {"capture_intermediates": lambda module, _: module.name == "conv"}
    run = functools.partial(model.apply, train=True, mutable=["batch_stats", "intermediates"], **captures)
    output, state = jax.jit(run)(variables, images)
    return np.asarray(output.logits), state["batch_stats"], state["intermediates"]


@pytest.fixture(scope="module")
def regnety_002(timm_shapes):
    return our_variables(timm_shapes["regnety_002"])


def at(tree, name):
    """The node at timm's dotted name."""
    return functools.reduce(lambda node, part: node[part], name.split("."), tree)


def flat(variables):
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}


def captured_dropouts(tree):
    """Outputs of stochastic depth, in the order of the blocks."""
    stages = {name: tree[name] for name in sorted(tree) if name.startswith("s") and name != "stem"}
    return [stage[block]["Dropout_0"]["__call__"][0] for stage in stages.values() for block in sorted(stage)]


# --- parity with timm -----------------------------------------------------------------------------------------------


# The logits of every named model: test_every_model.py.
def test_native_grouped_convolutions_equal_timm(golden, regnety_002, close):
    model = create_model("regnety_002", grouped_conv="native")  # elsewhere than on CPU the default
    close(jax.jit(model.apply)(regnety_002, model_images("regnety_002")).logits, golden["regnety_002"])


def test_fused_form_equals_timm(golden, regnety_002, close):
    model, variables = inference_form(create_model("regnety_002"), regnety_002)
    close(jax.jit(model.fused_form().apply)(variables, model_images("regnety_002")).logits, golden["regnety_002"])


# The widest stages have 11 and 27 groups of 112 channels; these have 2, 3 and 6.
def test_fused_form_equals_the_frozen_network_for_few_and_many_groups(tiny, answer):
    _, variables, images = tiny
    model, frozen = inference_form(RegNet(**TINY), variables)
    fused = model.fused_form()
    assert fused.grouped_conv == FUSED and jax.tree.map(jnp.shape, frozen) == jax.tree.map(
        jnp.shape, fused.init(jax.random.key(0), images)
    )
    np.testing.assert_allclose(jax.jit(fused.apply)(frozen, images).logits, answer, rtol=2e-5, atol=2e-5)


def test_only_tpus_compute_the_fused_form():
    frozen = RegNet(**TINY, folded=True)
    for platform, expected in (("tpu", FUSED), ("gpu", "native"), ("cpu", "packed")):
        there = SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]), size=1)
        assert on_mesh(fused_form(frozen), there).grouped_conv == expected
    assert (
        on_mesh(frozen, SimpleNamespace(devices=np.array([SimpleNamespace(platform="tpu")]))).grouped_conv == "native"
    )
    configured = RegNet(**TINY, folded=True, grouped_conv="packed")
    assert fused_form(configured).grouped_conv == "packed"
    assert fused_form(RegNet(**TINY)).grouped_conv == "auto"
    assert fused_form(Ensemble((frozen, configured))).members[0].grouped_conv == FUSED
    with pytest.raises(ValueError, match="grouped_conv='fused'"):
        RegNet(**TINY, grouped_conv=FUSED)


@pytest.mark.long
def test_stem_of_stride_1_equals_timm(golden, regnety_002, close):
    output = jax.jit(create_model("regnety_002", stem_stride=1).apply)(regnety_002, photographs(2, 32))
    close(output.logits, golden["regnety_002_stride_1"])


def test_training_pass_equals_timm(golden, regnety_002, close):
    """Logits and running means as PyTorch's; the running variances differ by design, and by exactly this factor.

    Both normalise by the biased variance of the n = B*H*W values of a channel. PyTorch stores the unbiased one,
    n / (n - 1) times it, in `running_var`; Flax stores the biased one. At n = 16 this is 7 %, in real training
    (n > 1000) nothing.
    """
    images = photographs(4, 64)
    run = jax.jit(functools.partial(create_model("regnety_002").apply, train=True, mutable="batch_stats"))
    output, state = run(regnety_002, images)
    close(output.logits, golden["regnety_002_train"])

    sides = {"stem.bn": 32, "s3.b2.conv2.bn": 4, "s4.b1.downsample.bn": 2}
    assert set(sides) == set(TRAINED_STATISTICS)
    for name, side in sides.items():
        before, after = at(regnety_002["batch_stats"], name), at(state["batch_stats"], name)
        close(after["mean"], golden[f"regnety_002_train/{name}.running_mean"])
        n = len(images) * side**2
        new_of_flax = after["var"] - 0.9 * before["var"]  # momentum .9: a tenth of the batch's variance
        new_of_torch = golden[f"regnety_002_train/{name}.running_var"] - 0.9 * before["var"]
        close(new_of_flax * n / (n - 1), new_of_torch)


# --- names and sizes ------------------------------------------------------------------------------------------------


def test_variable_names(tiny):
    _, variables, _ = tiny
    blocks = {"s1": 1, "s2": 2, "s3": 2}
    convolutions = ["stem"]
    names = ["head/fc/kernel", "head/fc/bias"]
    for stage, depth in blocks.items():
        for block in range(1, depth + 1):
            convolutions += [f"{stage}/b{block}/conv{i}" for i in (1, 2, 3)]
            names += [f"{stage}/b{block}/se/{layer}/{leaf}" for layer in ("fc1", "fc2") for leaf in ("kernel", "bias")]
        convolutions.append(f"{stage}/b1/downsample")
    names += [f"{name}/{leaf}" for name in convolutions for leaf in ("conv/kernel", "bn/scale", "bn/bias")]
    assert set(flat(variables["params"])) == set(names)
    assert set(flat(variables["batch_stats"])) == {
        f"{name}/bn/{leaf}" for name in convolutions for leaf in ("mean", "var")
    }


@pytest.mark.parametrize(("height", "width"), [(28, 28), (33, 50), (1, 1)])
def test_variables_do_not_depend_on_image_size(tiny, height, width):
    model, variables, _ = tiny
    images = jnp.zeros((2, height, width, 3))
    output, found = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert output.logits.shape == (2, 5)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, variables)


@pytest.mark.parametrize("size", [8, 9])
def test_strided_convolution_pads_both_sides(size):
    # The kernel is 1 at its upper left corner: the first value read is the padding, not the first pixel.
    images = jnp.arange(1.0, 1 + size * size).reshape(1, size, size, 1)
    kernel = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1.0)
    norm = {"scale": jnp.ones(1), "bias": jnp.zeros(1)}
    variables = {
        "params": {"conv": {"kernel": kernel}, "bn": norm},
        "batch_stats": {"bn": {"mean": jnp.zeros(1), "var": jnp.ones(1)}},
    }
    found = ConvBatchNorm(1, 3, 2).apply(variables, images, train=False)[0, :, :, 0]
    assert found.shape == ((size + 1) // 2, (size + 1) // 2)
    assert (found[0] == 0).all() and (found[:, 0] == 0).all()
    np.testing.assert_allclose(found[1:, 1:], images[0, 1:-1:2, 1:-1:2, 0], rtol=1e-4)


def test_batch_norm_epsilon_equals_pytorch():
    # With a variance near epsilon; variances near 1 would hide it.
    variables = {
        "params": {"conv": {"kernel": jnp.ones((1, 1, 1, 1))}, "bn": {"scale": jnp.ones(1), "bias": jnp.zeros(1)}},
        "batch_stats": {"bn": {"mean": jnp.zeros(1), "var": jnp.full(1, 1e-5)}},
    }
    found = ConvBatchNorm(1, 1).apply(variables, jnp.ones((1, 1, 1, 1)), train=False)
    np.testing.assert_allclose(found.ravel(), 2e-5**-0.5, rtol=1e-5)


# --- initialisation -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh():
    """One block of 128 channels in two groups."""
    model = RegNet(num_classes=500, w0=128, wa=0.0, wm=2.0, depth=1, group_width=64)
    return flat(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))


def test_convolution_initialisation_uses_fan_out_within_a_group(fresh):
    kernels = {name.removeprefix("params/"): np.asarray(x) for name, x in fresh.items() if x.ndim == 4}
    assert len(kernels) == 1 + 3 + 2 + 1
    assert kernels["s1/b1/conv2/conv/kernel"].shape == (3, 3, 64, 128)
    for name, kernel in kernels.items():
        height, width, _, outputs = kernel.shape
        groups = 2 if "/conv2/" in name else 1
        expected = (2 / (height * width * outputs / groups)) ** 0.5
        assert kernel.std() == pytest.approx(expected, rel=4 * (2 * kernel.size) ** -0.5), name
        assert np.abs(kernel.mean()) < 4 * expected * kernel.size**-0.5, name
        if kernel.size > 1000:
            beyond = 0.0455
            share = (np.abs(kernel) > 2 * expected).mean()
            assert abs(share - beyond) < 5 * (beyond / kernel.size) ** 0.5, name  # normal, not truncated


def test_block_starts_as_its_shortcut(fresh):
    for name, values in fresh.items():
        if name.endswith("bn/scale"):
            assert (np.asarray(values) == (0 if "/conv3/" in name else 1)).all(), name
        elif name.endswith(("/bias", "/mean")):
            assert (np.asarray(values) == 0).all(), name
        elif name.endswith("/var"):
            assert (np.asarray(values) == 1).all(), name


def test_head_starts_small(fresh):
    kernel = np.asarray(fresh["params/head/fc/kernel"])
    assert kernel.std() == pytest.approx(0.01, rel=4 * (2 * kernel.size) ** -0.5)


# --- batch statistics -----------------------------------------------------------------------------------------------


def test_evaluation_does_not_update_statistics(tiny, answer):
    model, variables, images = tiny
    output, state = jax.jit(functools.partial(model.apply, mutable="batch_stats"))(variables, images)
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])
    np.testing.assert_allclose(output.logits, answer, rtol=1e-5)
    assert np.abs(answer[0] - answer[1]).max() > 0.01


def test_evaluation_does_not_depend_on_the_batch(tiny, answer):
    model, variables, images = tiny
    np.testing.assert_allclose(jax.jit(model.apply)(variables, images[:3]).logits, answer[:3], rtol=1e-4, atol=1e-5)


def test_training_updates_every_statistic(tiny, answer, trained):
    _, variables, _ = tiny
    logits, statistics, outputs = trained
    assert np.abs(logits - answer).max() > 1e-3  # normalised by the batch
    before, after = flat(variables["batch_stats"]), flat(statistics)
    assert all(np.any(np.asarray(before[name]) != np.asarray(after[name])) for name in before)
    for name in ("stem", "s1/b1/conv2", "s2/b2/conv1", "s3/b1/downsample", "s3/b2/conv3"):
        values = np.asarray(at(outputs, f"{name}/conv".replace("/", "."))["__call__"][0], np.float64)
        batch = {"mean": values.mean((0, 1, 2)), "var": values.var((0, 1, 2))}
        for leaf, statistic in batch.items():
            expected = 0.9 * before[f"{name}/bn/{leaf}"] + 0.1 * statistic
            np.testing.assert_allclose(after[f"{name}/bn/{leaf}"], expected, rtol=1e-4, atol=1e-6)


def test_training_requires_mutable_statistics(tiny):
    model, variables, images = tiny
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        jax.eval_shape(functools.partial(model.apply, train=True), variables, images)


# --- dropping -------------------------------------------------------------------------------------------------------


def test_stochastic_depth_rates_rise_linearly(tiny):
    model, variables, images = tiny
    rates, others = [], []

    def record(next_function, args, kwargs, context):
        if isinstance(context.module, Dropout):
            (rates if context.module.whole_images else others).append(context.module.rate)
        return next_function(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(model.clone(drop_path_rate=0.4, dropout_rate=0.3).apply, variables, images)
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3, 0.4], atol=1e-12)
    assert others == [0.3]


def test_stochastic_depth_depends_on_position_and_block(tiny):
    model, variables, images = tiny
    model = model.clone(drop_path_rate=0.5)
    captures = {
        "capture_intermediates": lambda module, _: isinstance(module, Dropout),
        "mutable": ["batch_stats", "intermediates"],
    }

    @jax.jit
    def kept(images, positions):
        rngs = {"dropout": jax.random.key(3)}
        _, state = model.apply(variables, images, train=True, positions=positions, rngs=rngs, **captures)
        return [jnp.any(y != 0, axis=(1, 2, 3)) for y in captured_dropouts(state["intermediates"])]

    images = np.tile(images[:, :8, :8], (32, 1, 1, 1))
    whole = np.stack(kept(images, np.arange(256)))
    assert whole[0].all()
    for block, rate in enumerate([0, 0.125, 0.25, 0.375, 0.5]):
        assert abs(whole[block].mean() - (1 - rate)) <= 4 * (rate * (1 - rate) / 256) ** 0.5
    assert np.abs(np.corrcoef(whole[1:]) - np.eye(4)).max() < 4 / 256**0.5
    np.testing.assert_array_equal(np.stack(kept(images[:16], np.arange(40, 56))), whole[:, 40:56])


# --- outputs --------------------------------------------------------------------------------------------------------


def test_bfloat16_computation_has_float32_outputs(tiny, trained, close):
    model, variables, images = tiny
    low = model.clone(dtype=jnp.bfloat16)
    output, state = jax.jit(functools.partial(low.apply, train=True, mutable="batch_stats"))(variables, images)
    created = jax.eval_shape(low.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves((output, state, created))} == {jnp.dtype("float32")}
    close(output.logits, trained[0], 0.05)
    assert np.abs(np.asarray(output.logits) - trained[0]).max() > 1e-4  # it did compute in bfloat16


def test_gradients_reach_every_parameter(tiny):
    model, variables, images = tiny

    def loss(params):
        output, _ = model.apply(variables | {"params": params}, images, train=True, mutable="batch_stats")
        return jnp.square(output.logits).sum()

    images = images[:, :16, :16]
    gradients = jax.jit(jax.grad(loss))(variables["params"])
    for name, gradient in flat(gradients).items():
        assert np.isfinite(gradient).all() and np.any(gradient), name


# --- folded BatchNorm -----------------------------------------------------------------------------------------------

SMALL = {"w0": 16, "wa": 16.0, "wm": 2.0, "depth": 3, "group_width": 8, "num_classes": 7}


@pytest.fixture(scope="module")
def original(filled):
    model = create_model("regnety_002", **SMALL)
    images = photographs(2, 48)
    variables = filled(model, images)
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])  # variances are positive
    return model, variables, images


def test_folded_network_is_equivalent(original, close):
    model, variables, images = original
    folded, fewer = inference_form(model, variables)
    assert set(fewer) == {"params"}
    shapes = jax.eval_shape(folded.init, jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, fewer) == jax.tree.map(jnp.shape, shapes)
    close(jax.jit(folded.apply)(fewer, images).logits, jax.jit(model.apply)(variables, images).logits)


def test_folding_uses_every_statistic(original):
    model, variables, _ = original
    _, before = inference_form(model, variables)
    for name in ("mean", "var"):
        changed = jax.tree_util.tree_map_with_path(
            lambda path, leaf, name=name: leaf + 0.5 if path[-1].key == name else leaf, variables["batch_stats"]
        )
        _, after = inference_form(model, variables | {"batch_stats": changed})
        bias = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before["params"]["s1"], after["params"]["s1"])
        assert bias["b1"]["conv3"]["bias"] > 0


def test_folded_network_cannot_be_trained(original):
    folded, fewer = inference_form(*original[:2])
    with pytest.raises(ValueError, match="is frozen: train the original"):
        folded.apply(fewer, original[2], train=True)
    assert inference_form(folded, fewer) == (folded, fewer)


def test_inference_form_of_a_transformer_is_itself():
    model = create_model("deit_tiny_patch16_224")
    assert inference_form(model, {"params": {}}) == (model, {"params": {}})
