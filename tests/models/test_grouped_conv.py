import functools
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deit_jax.models.grouped_conv import GroupedConv, PerDevice, block_diagonal
from deit_jax.models.protocol import on_mesh
from deit_jax.models.regnet import RegNet, conv_init
from deit_jax.parallel.mesh import make_mesh


@pytest.fixture(scope="module")
def images():
    return {
        channels: np.random.RandomState(channels).normal(size=(2, 7, 9, channels)).astype(np.float32)
        for channels in (3, 24, 40, 48)
    }


# One group, groups that fill one pack, packs with a narrower last one, unpacked groups; three channels; odd sizes.
@pytest.mark.parametrize("implementation", ["native", "packed", "auto"])
@pytest.mark.parametrize(
    ("channels", "groups", "stride", "size"),
    [
        (24, 1, 2, 3),
        (3, 1, 2, 3),
        (24, 1, 1, 1),
        (24, 1, 2, 1),
        (24, 24, 2, 3),
        (48, 6, 1, 3),
        (40, 5, 2, 3),
        (48, 2, 1, 3),
    ],
)
def test_implementations_equal_linen(close, images, channels, groups, stride, size, implementation):
    x = images[channels]
    features = 2 * channels
    kernel = np.random.RandomState(0).normal(size=(size, size, channels // groups, features)).astype(np.float32)
    make = {"kernel_init": conv_init(groups)}
    ours = GroupedConv(features, size, stride, groups, implementation=implementation, **make)
    padding = ((size // 2, size // 2), (size // 2, size // 2))
    linen = nn.Conv(features, (size, size), stride, padding, feature_group_count=groups, use_bias=False, **make)

    def value_and_gradients(module, kernel, x):
        outputs, pull = jax.vjp(lambda kernel, x: module.apply({"params": {"kernel": kernel}}, x), kernel, x)
        return outputs, pull(jnp.sin(jnp.arange(outputs.size, dtype=jnp.float32)).reshape(outputs.shape))

    found, expected = (jax.jit(functools.partial(value_and_gradients, module))(kernel, x) for module in (ours, linen))
    jax.tree.map(functools.partial(close, limit=1e-6), found, expected)


@pytest.fixture(scope="module")
def on_several_devices():
    """{"native", "per device": (the program of eight devices, its gradients)}"""
    mesh = make_mesh(fsdp=2)
    whole, rows = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(mesh.axis_names)))
    x = np.random.RandomState(0).normal(size=(16, 7, 9, 24)).astype(np.float32)
    kernel = np.random.RandomState(1).normal(size=(3, 3, 8, 48)).astype(np.float32)
    native = GroupedConv(48, 3, 2, 3, kernel_init=conv_init(3), implementation="native")

    def gradients(module, kernel, x):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(module.apply({"params": {"kernel": a[0]}}, a[1]))), (0, 1))(
            kernel, x
        )

    found = {}
    for name, module in (("native", native), ("per device", native.clone(implementation=PerDevice(mesh)))):
        compiled = jax.jit(
            functools.partial(gradients, module), in_shardings=(whole, rows), out_shardings=(whole, rows)
        )
        compiled = compiled.lower(kernel, x).compile()
        found[name] = compiled, compiled(*jax.device_put((kernel, x), (whole, rows)))
    return found


def test_per_device_equals_native(close, on_several_devices):
    (_, found), (_, expected) = on_several_devices["per device"], on_several_devices["native"]
    jax.tree.map(functools.partial(close, limit=1e-6), found, expected)


@pytest.mark.compiler
def test_per_device_has_no_all_gather(on_several_devices):
    gathers = {name: "all-gather" in program.as_text() for name, (program, _) in on_several_devices.items()}
    assert not gathers["per device"]
    assert gathers["native"], "XLA no longer gathers the batch (openxla/xla#47945): PerDevice can go"


def test_auto_depends_on_the_platform():
    mesh = make_mesh()
    assert on_mesh(RegNet(grouped_conv="native"), mesh).grouped_conv == "native"
    for platform, size, expected in (("gpu", 1, "native"), ("tpu", 8, "native"), ("cpu", 8, "packed")):
        there = SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]), size=size)
        assert on_mesh(RegNet(), there).grouped_conv == expected
    gpus = SimpleNamespace(devices=np.array([SimpleNamespace(platform="gpu")]), size=8)
    assert on_mesh(RegNet(), gpus).grouped_conv == PerDevice(gpus)


def test_kernel_shape_equals_linen():
    ours = GroupedConv(48, 3, 1, 6, kernel_init=nn.initializers.ones)
    variables = jax.eval_shape(ours.init, jax.random.key(0), jnp.zeros((1, 5, 5, 24)))
    assert jax.tree.map(jnp.shape, variables) == {"params": {"kernel": (3, 3, 4, 48)}}


def test_block_diagonal_kernel():
    kernel = jnp.arange(1.0, 5.0).reshape(1, 1, 1, 4)  # two groups of one channel, two features each
    np.testing.assert_array_equal(block_diagonal(kernel, 2)[0, 0], [[1, 2, 0, 0], [0, 0, 3, 4]])


def test_bfloat16_computes_in_bfloat16(close, images):
    x = images[48]
    for implementation in ("native", "packed"):
        module = GroupedConv(48, 3, 1, 6, kernel_init=conv_init(6), implementation=implementation, dtype=jnp.bfloat16)
        kernel = np.random.RandomState(0).normal(size=(3, 3, 8, 48)).astype(np.float32)
        found = module.apply({"params": {"kernel": kernel}}, x)
        assert found.dtype == jnp.bfloat16
        close(found, module.clone(dtype=jnp.float32).apply({"params": {"kernel": kernel}}, x), 0.02)
