"""Which attention computes where, and that a model is the same function with each."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.models import create_model
from deit_jax.models.attention import Fused, choose, safe_length
from deit_jax.models.protocol import attention_on, on_mesh
from deit_jax.parallel.mesh import make_mesh

from .timm_names import photographs

NAME = "deit_tiny_distilled_patch16_224"
SMALL = {"num_classes": 5, "image_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3}
DEIT = {"width": 768, "num_heads": 12, "dtype": jnp.bfloat16}
DETERMINISTIC = "--xla_gpu_exclude_nondeterministic_ops=true"


def devices(kind, platform="tpu", **fields):
    device = SimpleNamespace(platform=platform, device_kind=kind, **fields)
    return SimpleNamespace(devices=np.array([device]), size=1)


V4, V5E, NEW = (devices(kind) for kind in ("TPU v4", "TPU v5 lite", "TPU v99"))
H100, V100 = (
    devices(kind, "gpu", compute_capability=cc) for kind, cc in (("NVIDIA H100", "9.0"), ("Tesla V100", "7.0"))
)
CPU = devices("cpu", "cpu")


@pytest.mark.parametrize(
    ("mesh", "changes", "expected", "why"),
    [
        (V5E, {}, "pallas", "in bfloat16 with 197 tokens on TPU v5 lite"),
        (V5E, {"tokens": 578}, "pallas", "578 tokens"),
        (V4, {"tokens": 198}, "pallas", "TPU v4"),
        (
            V4,
            {"tokens": 577},
            "xla",
            "16.5 MiB of on-chip memory for 577 tokens of 768 channels, and a core of TPU v4 has 16",
        ),
        (V4, {"tokens": 577, "width": 192, "num_heads": 3}, "pallas", "577"),
        (V5E, {"dtype": jnp.float32}, "xla", "for bfloat16, and compute_dtype is float32"),
        (V5E, {"width": 768, "num_heads": 16}, "xla", "heads of 16, 32, 64 or 128 channels, and this model's have 48"),
        (V5E, {"tokens": 17}, "xla", "gains nothing with 17 tokens"),
        (V5E, {"tokens": 2305}, "xla", "never compiled for 2305 tokens"),
        (NEW, {}, "xla", "never compiled for TPU v99"),
        (CPU, {}, "xla", "no fused kernel computes on cpus"),
        (H100, {}, "xla", "not reproducible"),
        (V100, {}, "xla", "capability 8.0"),
    ],
)
def test_auto_depends_on_devices_type_and_shape(monkeypatch, mesh, changes, expected, why):
    monkeypatch.setenv("XLA_FLAGS", DETERMINISTIC if mesh is V100 else "")
    choice = choose("auto", mesh, **{"tokens": 197} | DEIT | changes)
    assert choice.name == expected and why in choice.why and "\n" not in choice.why


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (DETERMINISTIC, "cudnn"),
        ("--xla_foo=1 --xla_gpu_deterministic_ops", "cudnn"),
        (DETERMINISTIC.replace("true", "false"), "xla"),
        ("--xla_gpu_deterministic_ops_of_another_kind=true", "xla"),
    ],
)
def test_auto_takes_cudnn_where_xla_is_deterministic(monkeypatch, flags, expected):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert choose("auto", H100, tokens=197, **DEIT).name == expected


def test_a_requested_kernel_is_taken_where_it_can_compute():
    sizes = {"tokens": 10, "width": 128, "num_heads": 2}
    assert choose("pallas", NEW, **sizes, dtype=jnp.float32).name == "pallas"
    assert choose("cudnn", V100, **sizes, dtype=jnp.float16).name == "cudnn"
    for requested, mesh, why in (
        ("pallas", CPU, "TPUs only"),
        ("cudnn", V5E, "NVIDIA GPUs only"),
        ("cudnn", H100, "float32"),
    ):
        choice = choose(requested, mesh, **sizes, dtype=jnp.float32)
        assert choice.name == "xla" and why in choice.why
    assert choose("dot_product", CPU, **sizes, dtype=jnp.float32).name == "dot_product"


def test_a_model_on_a_mesh_has_the_kernel_of_its_devices(monkeypatch):
    model = create_model(NAME, dtype=jnp.bfloat16, attention="auto")
    assert on_mesh(model, V5E).attention == Fused("pallas", V5E) and attention_on(model, V5E)[0] == "pallas"
    assert on_mesh(on_mesh(model, V5E), CPU).attention == Fused("pallas", V5E)
    assert on_mesh(model, CPU).attention == "xla" and on_mesh(model.clone(attention="pallas"), CPU).attention == "xla"
    assert on_mesh(create_model(NAME), V5E).attention == "xla"
    assert attention_on(create_model("regnety_002"), V5E) is None


def lowered(model, images):
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def gradients(variables):
        return jax.grad(lambda variables: jnp.sum(model.apply(variables, images).logits))(variables)

    return jax.jit(gradients).lower(variables).as_text()


@pytest.mark.parametrize("attention", ["auto", "pallas", "cudnn"])
def test_the_program_of_a_cpu_is_that_of_xla(attention):
    images = photographs(2, 32)
    model = create_model(NAME, **SMALL, attention=attention)
    assert lowered(on_mesh(model, make_mesh()), images) == lowered(create_model(NAME, **SMALL), images)
    assert lowered(model, images) == lowered(create_model(NAME, **SMALL), images)


@pytest.mark.parametrize("options", [{"remat": "dots", "distilled": False}, {"scan_blocks": True}])
def test_the_model_with_the_kernel_is_the_same_function(filled, options):
    """On four devices, with the gradients of all parameters."""
    images = photographs(4, 32)
    plain = create_model(NAME, **SMALL | options)
    mesh = make_mesh(jax.devices()[:4])
    fused = plain.clone(attention=Fused("pallas", mesh, interpret=True))
    variables = filled(plain, images)
    assert jax.tree.map(jnp.shape, jax.eval_shape(fused.init, jax.random.key(0), images)) == jax.tree.map(
        jnp.shape, variables
    )

    def value_and_gradients(model):
        return jax.jit(jax.value_and_grad(lambda it: jnp.sum(jnp.sin(model.apply(it, images).logits))))(variables)

    (value, gradients), (expected, others) = value_and_gradients(fused), value_and_gradients(plain)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(others), strict=True):
        assert np.linalg.norm(one - other) <= 2e-5 * np.linalg.norm(other) + 1e-6, jax.tree_util.keystr(path)


def test_what_a_kernel_does_not_compute_is_computed_by_xla():
    """A batch that the devices do not divide, and the queries of the last block."""
    mesh = make_mesh(jax.devices()[:4])
    fused = create_model(NAME, **SMALL, attention=Fused("pallas", mesh, interpret=True))
    variables = jax.eval_shape(fused.init, jax.random.key(0), photographs(1, 32))
    kernels = [
        str(jax.make_jaxpr(fused.apply)(variables, photographs(count, 32))).count("name=attention_forward")
        for count in (3, 4)
    ]
    assert kernels == [0, 1]


def test_safe_lengths():
    lengths = {197: 200, 198: 200, 200: 200, 226: 232, 577: 584, 578: 584, 190: 200, 320: 328}
    assert {tokens: safe_length(tokens) for tokens in lengths} == lengths
