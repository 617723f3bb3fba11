import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.models import ModelOutput, create_model
from deit_jax.models.attention import Fused
from deit_jax.models.layers import Dropout
from deit_jax.models.protocol import fuse
from deit_jax.models.vit import LayerNorm, Mlp, VisionTransformer
from deit_jax.models.vit_parameters import stack_blocks

from .timm_names import FULL_SIZE_TOKENS, SMALL_VIT, TOKENS, model_images, our_variables, photographs

TINY = {"num_classes": 5, "image_size": 28, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}


@pytest.fixture(scope="module")
def tiny(filled):
    """A small distilled model, its variables, and images."""
    model = VisionTransformer(**TINY, distilled=True)
    images = np.random.RandomState(1).normal(size=(4, 28, 28, 3)).astype(np.float32)
    return model, filled(model, images), images


@pytest.fixture(scope="module")
def answer(tiny):
    """The output of the small model in evaluation."""
    model, variables, images = tiny
    return jax.tree.map(np.asarray, jax.jit(model.apply)(variables, images))


def flat(variables):
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}


def drop_path_outputs(model, variables, images, **kwargs):
    """Every branch after stochastic depth: {block: (attention, mlp)} of float[B, N, D]."""
    captures = {"capture_intermediates": lambda module, _: isinstance(module, Dropout), "mutable": "intermediates"}
    _, state = model.apply(variables, images, train=True, **captures, **kwargs)
    captured = state["intermediates"]
    blocks = {int(name.removeprefix("blocks_")): tree for name, tree in captured.items() if name.startswith("blocks_")}
    return {i: tuple(blocks[i][f"Dropout_{k}"]["__call__"][0] for k in (0, 1)) for i in sorted(blocks)}


# --- parity with timm -----------------------------------------------------------------------------------------------


def close_tokens(close, captured, depth, tokens, golden, **kwargs):
    """Compares the tokens after embedding, each block and norm; the last two have only the heads' tokens."""
    stages = [captured["Dropout_0"], *(captured[f"blocks_{i}"] for i in range(depth)), captured["norm"]]
    for number, (stage, expected) in enumerate(zip(stages, golden, strict=True)):
        found = stage["__call__"][0]
        there = [i for i, token in enumerate(tokens) if token < found.shape[1]]
        assert len(there) == (2 if number >= depth else len(tokens))
        close(found[0, np.array(tokens)[there]], expected[there], **kwargs)


# The logits of every named model: test_every_model.py.
def test_tokens_equal_timm(golden, timm_shapes, close):
    name = "deit_tiny_distilled_patch16_224"
    model = create_model(name)
    run = jax.jit(functools.partial(model.apply, capture_intermediates=True, mutable="intermediates"))
    _, state = run(our_variables(timm_shapes[name]), model_images(name)[:1])
    close_tokens(close, state["intermediates"], model.depth, FULL_SIZE_TOKENS, golden[f"{name}/tokens"], limit=3e-6)


def test_heads_and_tokens_of_a_small_model_equal_timm(golden, timm_shapes, close):
    model = create_model("deit_small_distilled_patch16_224", **SMALL_VIT)
    variables, images = our_variables(timm_shapes["small_vit"]), photographs(2, SMALL_VIT["image_size"])
    output, state = jax.jit(functools.partial(model.apply, capture_intermediates=True, mutable="intermediates"))(
        variables, images
    )
    close(jnp.stack([output.class_logits, output.distillation_logits, output.logits]), golden["small_vit"])
    close_tokens(close, state["intermediates"], SMALL_VIT["depth"], TOKENS, golden["small_vit/tokens"])


def test_mlp_uses_exact_gelu():
    x = np.linspace(-4, 4, 81, dtype=np.float32)[:, None]
    one = {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}
    found = Mlp(1, 0.0, "float32", jnp.float32).apply(
        {"params": {"fc1": one, "fc2": one}}, x, train=False, positions=None
    )
    erf = np.array([value * 0.5 * (1 + math.erf(value / 2**0.5)) for value in x[:, 0].astype(np.float64)])
    np.testing.assert_allclose(found[:, 0], erf, atol=1e-6)
    assert np.abs(jax.nn.gelu(x)[:, 0] - erf).max() > 1e-4  # the tanh approximation would not pass


def test_layer_norm_epsilon_equals_the_reference():
    # With a variance near epsilon; tokens of variance near 1 would hide it.
    x = np.random.RandomState(0).normal(size=(3, 50)) * 1e-3
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    ones = {"scale": jnp.ones(50), "bias": jnp.zeros(50)}
    np.testing.assert_allclose(
        LayerNorm().apply({"params": ones}, x.astype(np.float32)), expected, rtol=1e-4, atol=1e-5
    )


# --- names, sizes and refusals --------------------------------------------------------------------------------------


def test_parameter_names(tiny):
    _, variables, _ = tiny
    block = [
        *(f"norm{i}/{leaf}" for i in (1, 2) for leaf in ("scale", "bias")),
        *(
            f"{layer}/{leaf}"
            for layer in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
            for leaf in ("kernel", "bias")
        ),
    ]
    names = [
        "cls_token",
        "dist_token",
        "pos_embed",
        "patch_embed/proj/kernel",
        "patch_embed/proj/bias",
        "norm/scale",
        "norm/bias",
    ]
    names += [f"blocks_{i}/{name}" for i in range(TINY["depth"]) for name in block]
    names += ["head/kernel", "head/bias", "head_dist/kernel", "head_dist/bias"]
    assert set(variables) == {"params"}
    assert set(flat(variables["params"])) == set(names)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "distilled"), [(28, 4, True), (28, 7, False), (32, 32, True), (30, 5, False)]
)
def test_any_image_and_patch_size(image_size, patch_size, distilled):
    sizes = TINY | {"image_size": image_size, "patch_size": patch_size, "depth": 1}
    model = VisionTransformer(**sizes, distilled=distilled)
    images = jnp.zeros((3, image_size, image_size, 3))
    output, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert variables["params"]["pos_embed"].shape == (
        1,
        (image_size // patch_size) ** 2 + 1 + distilled,
        TINY["embed_dim"],
    )
    assert output.logits.shape == output.class_logits.shape == (3, 5)
    assert (output.distillation_logits is not None) == distilled


def test_mnist_sized_model(answer):
    assert isinstance(answer, ModelOutput)
    assert all(part.shape == (4, 5) and np.isfinite(part).all() for part in answer)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 30}, "image_size=30.*patch_size=4"),
        ({"embed_dim": 25}, "embed_dim=25.*num_heads=3"),
        ({"fusion": "sum"}, "'sum'.*logits, softmax"),
        ({"patch_keep_rate": 0.0}, "patch_keep_rate=0.0 is not above 0"),
    ],
)
def test_invalid_fields_are_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(**(TINY | fields))


@pytest.mark.parametrize("shape", [(32, 32), (28, 32), (32, 28)])
def test_images_of_another_size_are_rejected(tiny, shape):
    model, variables, _ = tiny
    with pytest.raises(ValueError, match=rf"{shape[0]}x{shape[1]}.*image_size=28"):
        jax.eval_shape(model.apply, variables, jnp.zeros((1, *shape, 3)))


# --- initialisation -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh():
    """deit_tiny's parameters at a smaller patch, so that the position embedding is long."""
    model = create_model("deit_tiny_distilled_patch16_224", image_size=64, patch_size=4, depth=1)
    return flat(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"])


NORMAL = ("cls_token", "dist_token", "pos_embed", "head/kernel", "head_dist/kernel") + tuple(
    f"blocks_0/{layer}/kernel" for layer in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
)


@pytest.mark.parametrize("name", NORMAL)
def test_tokens_and_dense_kernels_start_as_plain_normals(fresh, name):
    values = np.asarray(fresh[name]).ravel() / 0.02
    error = values.size**-0.5  # of a mean; of a standard deviation it is smaller by the root of 2
    assert abs(values.mean()) < 4 * error
    assert abs(values.std() - 1) < 4 * error / 2**0.5
    if values.size > 1000:  # a normal truncated at 2 sigma has standard deviation .88 and no values beyond
        beyond = 0.0455
        assert abs((np.abs(values) > 2).mean() - beyond) < 4 * (beyond * (1 - beyond) / values.size) ** 0.5


def test_patch_convolution_starts_as_in_pytorch(fresh):
    bound = (4 * 4 * 3) ** -0.5
    for name in ("patch_embed/proj/kernel", "patch_embed/proj/bias"):
        values = np.asarray(fresh[name]).ravel()
        assert 0.95 * bound < np.abs(values).max() <= bound
        assert values.std() == pytest.approx(bound / 3**0.5, rel=2 * values.size**-0.5)


def test_biases_start_at_0_and_scales_at_1(fresh):
    for name, values in fresh.items():
        if name.endswith("/scale"):
            assert (np.asarray(values) == 1).all(), name
        elif name.endswith("/bias") and name != "patch_embed/proj/bias":
            assert (np.asarray(values) == 0).all(), name


# --- dropping -------------------------------------------------------------------------------------------------------


def test_stochastic_depth_rates_rise_linearly():
    model = VisionTransformer(**(TINY | {"depth": 5}), drop_path_rate=0.4, dropout_rate=0.1)
    rates, others = [], []

    def record(next_function, args, kwargs, context):
        if isinstance(context.module, Dropout):
            (rates if context.module.whole_images else others).append(context.module.rate)
        return next_function(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 3)))
    np.testing.assert_allclose(rates, np.repeat([0, 0.1, 0.2, 0.3, 0.4], 2))  # both branches of a block
    assert others == [0.1] * (1 + 5 * 3)  # after the position embedding; attn/proj, mlp/fc1 and mlp/fc2


def test_stochastic_depth_drops_branches_independently(filled):
    sizes = TINY | {"image_size": 4, "embed_dim": 6, "depth": 3}
    model = VisionTransformer(**sizes, drop_path_rate=0.5)
    images = np.random.RandomState(1).normal(size=(512, 4, 4, 3)).astype(np.float32)
    variables = filled(model, images)
    run = jax.jit(functools.partial(drop_path_outputs, model))
    outputs = run(variables, images, rngs={"dropout": jax.random.key(2)})
    kept = {i: [(np.asarray(branch) != 0).any((1, 2)) for branch in branches] for i, branches in outputs.items()}
    assert all(branch.all() for branch in kept[0])
    for i, rate in ((1, 0.25), (2, 0.5)):
        for branch in kept[i]:
            assert abs(branch.mean() - (1 - rate)) < 4 * (rate * (1 - rate) / 512) ** 0.5
    draws = np.stack([branch for i in (1, 2) for branch in kept[i]])
    correlation = np.corrcoef(draws) - np.eye(4)
    assert np.abs(correlation).max() < 4 / 512**0.5


@pytest.fixture(scope="module")
def dropping():
    """A model that drops, jitted: (variables, images, positions, key) to its output."""
    model = VisionTransformer(**TINY, distilled=True, drop_path_rate=0.5, dropout_rate=0.1)

    def apply(variables, images, positions, key):
        return model.apply(variables, images, train=True, positions=positions, rngs={"dropout": key})

    return model, jax.jit(apply)


def test_dropout_depends_on_position_not_on_batch(tiny, dropping):
    _, variables, images = tiny
    _, apply = dropping
    images, key = np.concatenate([images, images]), jax.random.key(3)
    whole = np.asarray(apply(variables, images, np.arange(8), key).logits)
    half = apply(variables, images[4:], np.arange(4, 8), key).logits
    np.testing.assert_allclose(half, whole[4:], rtol=1e-4, atol=1e-5)
    assert np.abs(whole[:4] - whole[4:]).max() > 0.01  # the same images, at other positions


def test_no_dropout_in_evaluation(tiny, dropping, answer):
    _, variables, images = tiny
    model, apply = dropping
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, images).logits, answer.logits, rtol=1e-6
    )  # and needs no key
    dropped = apply(variables, images, np.arange(4), jax.random.key(3)).logits
    assert np.abs(np.asarray(dropped) - answer.logits).max() > 0.01


def test_training_without_dropout_needs_no_key(tiny, answer):
    model, variables, images = tiny
    trained = jax.jit(functools.partial(model.apply, train=True))(variables, images)
    np.testing.assert_allclose(trained.logits, answer.logits, rtol=1e-6)


# --- outputs --------------------------------------------------------------------------------------------------------


def test_logits_are_the_fusion_of_both_heads(tiny, answer):
    model, variables, images = tiny
    heads = (answer.class_logits, answer.distillation_logits)
    assert np.abs(heads[0] - heads[1]).max() > 0.1
    np.testing.assert_allclose(answer.logits, fuse(*heads, "logits"), rtol=1e-5, atol=1e-6)
    softmax = jax.jit(model.clone(fusion="softmax").apply)(variables, images)
    np.testing.assert_allclose(softmax.logits, fuse(*heads, "softmax"), rtol=1e-5, atol=1e-6)


def test_bfloat16_computation_has_float32_outputs(tiny, answer, close):
    model, variables, images = tiny
    low = model.clone(dtype=jnp.bfloat16)
    parameters = jax.tree.leaves(jax.eval_shape(low.init, jax.random.key(0), images))
    assert {leaf.dtype for leaf in parameters} == {jnp.dtype("float32")}
    run = jax.jit(functools.partial(low.apply, capture_intermediates=True, mutable="intermediates"))
    output, state = run(variables, images)
    for found, expected in zip(output, answer, strict=True):
        assert found.dtype == jnp.float32
        close(found, expected, 0.05)
        assert np.abs(np.asarray(found) - expected).max() > 1e-4  # it did compute in bfloat16
    assert state["intermediates"]["blocks_1"]["__call__"][0].dtype == jnp.bfloat16


def test_float32_residual_stream_reduces_bfloat16_error(tiny):
    model, variables, images = tiny
    deep = model.clone(depth=8, scan_blocks=True)  # one block to compile
    blocks = {f"blocks_{i}": variables["params"][f"blocks_{i % 2}"] for i in range(8)}
    params = stack_blocks(variables["params"] | blocks)

    def answer_and_gradient(**fields):
        def loss(params):
            output = deep.clone(**fields).apply({"params": params}, images)
            return jnp.square(output.logits).sum(), output

        gradients, output = jax.jit(jax.grad(loss, has_aux=True))(params)
        return [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (output, gradients)]

    exact = answer_and_gradient()
    rounded, better = (
        [np.linalg.norm(one - other) / np.linalg.norm(other) for one, other in zip(found, exact, strict=True)]
        for found in (answer_and_gradient(dtype=jnp.bfloat16, residual_dtype=it) for it in ("compute", "float32"))
    )
    print(rounded, better)
    assert 1e-3 < better[0] < 0.9 * rounded[0] and 1e-3 < better[1] < rounded[1]


@pytest.mark.parametrize(
    "options", [{}, {"scan_blocks": True}, {"remat": "full"}, {"scan_blocks": True, "remat": "dots"}]
)
def test_residual_stream_is_float32_and_branches_are_not(tiny, options):
    model, variables, images = tiny
    wide = model.clone(dtype=jnp.bfloat16, residual_dtype="float32", **options)
    variables = {"params": stack_blocks(variables["params"]) if options.get("scan_blocks") else variables["params"]}
    run = functools.partial(wide.apply, capture_intermediates=True, mutable="intermediates")
    output, state = jax.eval_shape(run, variables, images)
    captured = jax.tree_util.tree_leaves_with_path(state["intermediates"])
    types = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.dtype for path, leaf in captured}

    def of(*ends):
        return {types[name] for name in types if name.removesuffix("/__call__/0").endswith(ends)}

    assert all(leaf.dtype == jnp.float32 for leaf in output)
    assert of("patch_embed", "norm", "head", "head_dist") == {jnp.dtype("bfloat16")}
    assert {types["Dropout_0/__call__/0"]} == {jnp.dtype("float32")}
    if not options.get("scan_blocks"):
        assert of("blocks_0", "blocks_1") == {jnp.dtype("float32")}
        assert of("attn", "mlp", "norm1", "norm2") == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("scan_blocks", [False, True])
def test_residual_and_drop_dtype_have_no_effect_in_float32(tiny, scan_blocks):
    model, _, images = tiny
    model = model.clone(dropout_rate=0.1, drop_path_rate=0.2, scan_blocks=scan_blocks)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)

    def program(**fields):
        apply = functools.partial(model.clone(**fields).apply, train=True)
        return str(
            jax.make_jaxpr(lambda v, x, key: apply(v, x, rngs={"dropout": key}))(shapes, images, jax.random.key(0))
        )

    plain = re.sub(r"0x\w+", "", program())
    for fields in ({"residual_dtype": "float32"}, {"drop_dtype": "compute"}):
        assert re.sub(r"0x\w+", "", program(**fields)) == plain


def test_gradients_reach_every_parameter(tiny):
    model, variables, images = tiny
    gradient = jax.grad(lambda v: jnp.square(model.apply(v, images).logits).sum())
    gradients = jax.jit(gradient)(variables)
    for name, gradient in flat(gradients["params"]).items():
        assert np.isfinite(gradient).all() and np.any(gradient), name


def test_gradients_of_every_dense_kernel_are_added_in_float32(tiny):
    images = tiny[2]
    fields = TINY | {"num_heads": 1, "embed_dim": 32, "dtype": jnp.bfloat16, "gradient_dtype": "float32"}
    # The last block computes as with "xla".
    model = VisionTransformer(**fields, distilled=True, attention=Fused("pallas", None, interpret=True))
    variables = jax.jit(model.clone(attention="xla").init)(jax.random.key(0), images)
    loss = jax.jit(jax.grad(lambda variables: jnp.sum(jnp.square(model.apply(variables, images).logits - 1))))
    for name, leaf in flat(loss(variables)).items():
        rounded = (leaf == leaf.astype(jnp.bfloat16)).mean()
        if name.endswith("kernel") and "patch_embed" not in name:
            assert rounded < 0.5, name


# --- patch dropout --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"scan_blocks": True, "remat": "full"}, {"attention": "dot_product"}])
def test_patch_dropout_shortens_every_block_in_training(tiny, answer, options):
    _, variables, images = tiny
    model = VisionTransformer(**TINY, distilled=True, patch_keep_rate=0.3, **options)
    if model.scan_blocks:
        variables = {"params": stack_blocks(variables["params"])}
    shapes = []

    def record(next_, args, kwargs, context):
        if context.module.name == "proj" and context.method_name == "__call__" and args[0].ndim == 3:
            shapes.append(args[0].shape[1])
        return next_(*args, **kwargs)

    with nn.intercept_methods(record):
        found = jax.jit(functools.partial(model.apply, train=True))(
            variables, images, rngs={"dropout": jax.random.key(0)}
        )
    tokens = 14 + 2  # of 49 patches
    assert set(shapes) == ({tokens} if model.scan_blocks else {tokens, 2})
    assert not np.allclose(found.logits, answer.logits)
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(jax.jit(model.apply)(variables, images).logits, answer.logits, **close)


def test_patch_dropout_gives_class_tokens_but_no_maps(tiny):
    _, variables, images = tiny
    model = VisionTransformer(**TINY, distilled=True, patch_keep_rate=0.5)
    call = functools.partial(model.apply, variables, images, train=True, rngs={"dropout": jax.random.key(0)})
    _, features = call(features=("class_1", "final"))
    assert features["class_1"].shape == (4, 24)
    with pytest.raises(ValueError, match=r"patch_keep_rate=0\.5 leaves no map"):
        call(features=("patch_1",))
