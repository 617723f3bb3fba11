import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from deit_jax.models import create_model, list_models
from deit_jax.models.flops import count_flops, forward_flops, forward_flops_by_kind, train_flops

# GMACs (10^9 multiply-adds) of linear layers and convolutions, and with the two products of attention: counted by hooks on the
# released PyTorch models.
DEIT = {
    "tiny_patch16_224": (1.075, 1.254),
    "small_patch16_224": (4.241, 4.599),
    "base_patch16_224": (16.849, 17.564),
    "base_patch16_384": (49.348, 55.484),
    "tiny_distilled_patch16_224": (1.080, 1.261),
    "small_distilled_patch16_224": (4.263, 4.624),
    "base_distilled_patch16_224": (16.934, 17.657),
    "base_distilled_patch16_384": (49.434, 55.591),
}
# As published by pycls and timm.
REGNETY = {
    "002": 0.200, "004": 0.402, "006": 0.601, "008": 0.797, "016": 1.612, "032": 3.176,
    "040": 3.973, "064": 6.355, "080": 7.963, "120": 12.092, "160": 15.912, "320": 32.280,
}  # fmt: skip


def gmac(flops):
    return flops / 2e9


@pytest.mark.parametrize("name", DEIT)
def test_multiply_adds_of_transformers(name):
    counts = forward_flops_by_kind(create_model(f"deit_{name}"), int(name[-3:]))
    without, whole = DEIT[name]
    assert gmac(counts["convolution"] + counts["dense"]) == pytest.approx(without, abs=6e-4)
    assert gmac(sum(counts.values())) == pytest.approx(whole, abs=6e-4)


# test_registry.py checks the shapes of all models.
@pytest.mark.parametrize(
    "name", [name if name in ("002", "016", "160") else pytest.param(name, marks=pytest.mark.long) for name in REGNETY]
)
def test_multiply_adds_of_convnets(name):
    assert gmac(forward_flops(create_model(f"regnety_{name}"), 224)) == pytest.approx(REGNETY[name], rel=1e-3, abs=6e-4)


def test_every_model_is_in_the_tables():
    assert {f"deit_{name}" for name in DEIT} | {f"regnety_{name}" for name in REGNETY} == set(list_models())


@pytest.mark.parametrize("options", [{"scan_blocks": True}, {"remat": "full"}, {"attention": "cudnn"}])
def test_flops_do_not_depend_on_transformer_options(options):
    small = {"embed_dim": 32, "depth": 3, "num_heads": 2}
    name = "deit_tiny_distilled_patch16_224"
    assert forward_flops(create_model(name, **small, **options), 224) == forward_flops(create_model(name, **small), 224)


def test_flops_do_not_depend_on_group_packing():
    counts = [forward_flops(create_model("regnety_002", grouped_conv=form), 64) for form in ("native", "packed")]
    assert counts[0] == counts[1]


def test_train_flops_of_student_and_teacher():
    student, teacher = create_model("deit_tiny_patch16_224"), create_model("regnety_002")
    flops = train_flops(student, teacher, 224)
    assert flops == (3 * forward_flops(student, 224), forward_flops(teacher, 224))
    assert flops.total == sum(flops)
    assert train_flops(student, None, 224).teacher == 0


def test_flops_of_loops_branches_and_custom_derivatives():
    x = jnp.ones((4, 4))
    once = count_flops(lambda x: x @ x, x)["dense"]
    assert once == 2 * 4**3
    assert count_flops(lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, length=5)[0], x)["dense"] == 5 * once
    assert count_flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ x @ x, x), x)["dense"] == 2 * once
    assert count_flops(jax.grad(lambda x: jnp.sum(x @ x)), x)["dense"] == 3 * once
    with pytest.raises(ValueError, match="while loop"):
        count_flops(lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x), x)


class Attending(nn.Module):
    """A registered model with methods named like options of the package's models."""

    num_classes: int = 3

    def attention(self, x):
        return x

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.num_classes)(self.attention(images.mean(axis=(1, 2))))


def test_flops_of_a_model_with_a_method_named_like_an_option():
    assert forward_flops(Attending(), 8) == 2 * 3 * 3


def test_training_counts_the_patch_tokens_that_are_kept():
    plain, half = (create_model("deit_tiny_patch16_224", patch_keep_rate=rate) for rate in (1.0, 0.5))
    assert forward_flops(half, 224) == forward_flops(plain, 224) == train_flops(plain, None, 224).student / 3
    share = train_flops(half, None, 224).student / train_flops(plain, None, 224).student
    assert 0.45 < share < 0.5  # 99 of 197 tokens, whose attention is quadratic
