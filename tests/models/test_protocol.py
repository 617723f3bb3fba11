import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.models import ModelOutput, create_model, list_models
from deit_jax.models.ensemble import Ensemble, joined_variables
from deit_jax.models.protocol import (
    ModelError,
    check_outputs,
    classify,
    feature_widths,
    fixed_image_size,
    fuse,
    fusion_of,
    inference_form,
    initial_variables,
    is_distilled,
    num_prefix_tokens,
    portable_form,
    resize_variables,
    train_outputs,
    with_dtype,
)

IMAGES = np.random.default_rng(1).normal(size=(3, 12, 12, 3)).astype(np.float32)


class Pooling(nn.Module):
    """A minimal model: num_classes and a call with images."""

    num_classes: int = 4

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.num_classes)(images.mean(axis=(1, 2))).astype(jnp.bfloat16)


class Drawing(nn.Module):
    """A model with BatchNorm, dropout and a distillation head."""

    num_classes: int = 4
    distilled = True

    @nn.compact
    def __call__(self, images, **options):
        assert set(options) <= {"train", "positions"}
        train = options["train"]
        x = nn.BatchNorm(use_running_average=not train)(images.mean(axis=(1, 2)))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        one, other = nn.Dense(self.num_classes, name="one")(x), nn.Dense(self.num_classes, name="other")(x)
        return ModelOutput((one + other) / 2, one, other)


def variables_of(model, **kwargs):
    return model.init(jax.random.key(0), IMAGES, **kwargs)


def test_plain_logits_become_a_model_output():
    model = Pooling()
    output = classify(model, variables_of(model), jnp.asarray(IMAGES))
    assert output.distillation_logits is None and output.logits.dtype == jnp.float32
    np.testing.assert_array_equal(output.logits, output.class_logits)
    trained, updates = train_outputs(
        model, variables_of(model), jnp.asarray(IMAGES), train=True, positions=jnp.arange(3), rngs={}
    )
    np.testing.assert_array_equal(trained.logits, output.logits)
    assert not updates.get("batch_stats")


def test_train_outputs_apply_dropout_and_update_statistics():
    model = Drawing()
    variables = variables_of(model, train=False)
    kwargs = {"positions": jnp.arange(3), "rngs": {"dropout": jax.random.key(1)}}
    output, updates = train_outputs(model, variables, jnp.asarray(IMAGES), train=True, **kwargs)
    assert not np.allclose(output.logits, classify(model, variables, jnp.asarray(IMAGES)).logits)
    assert np.abs(updates["batch_stats"]["BatchNorm_0"]["mean"]).max() > 0
    still, unmoved = train_outputs(model, variables, jnp.asarray(IMAGES), train=False, **kwargs)
    np.testing.assert_array_equal(still.logits, classify(model, variables, jnp.asarray(IMAGES)).logits)
    jax.tree.map(np.testing.assert_array_equal, unmoved["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda x: x[:, :3], r"returned an array of shape \(3, 3\) as logits; return logits of shape \(3, 4\)"),
        (lambda x: x.sum(axis=1), r"an array of shape \(3,\)"),
        (lambda x: {"logits": x}, "returned dict as logits"),
        (lambda x: (x, x), "returned tuple as logits"),
        (lambda x: ModelOutput(x, x, x[:2]), r"shape \(2, 4\) as distillation_logits"),
    ],
)
def test_invalid_outputs_are_rejected(returned, message):
    class Wrong(nn.Module):
        num_classes: int = 4

        @nn.compact
        def __call__(self, images):
            return returned(nn.Dense(4)(images.mean(axis=(1, 2))))

    model = Wrong()
    with pytest.raises(ValueError, match=f"Wrong {message}" if message.startswith("returned") else message) as error:
        classify(model, variables_of(model), jnp.asarray(IMAGES))
    assert "\n" not in str(error.value)


def test_defaults_of_a_model_without_optional_attributes():
    model = Pooling()
    assert (fixed_image_size(model), num_prefix_tokens(model), feature_widths(model)) == (None, 0, ())
    assert not is_distilled(model) and fusion_of(model) == "class"
    variables = variables_of(model)
    for form in (inference_form, portable_form):
        assert form(model, variables) == (model, variables)
    assert resize_variables(model, variables) is variables and with_dtype(model, jnp.bfloat16) is model


@pytest.mark.parametrize("name", list_models())
def test_attributes_of_own_models(name):
    model = create_model(name)
    transformer = name.startswith("deit")
    assert fixed_image_size(model) == (int(name[-3:]) if transformer else None)
    assert num_prefix_tokens(model) == (transformer and 1 + ("distilled" in name))
    assert is_distilled(model) == ("distilled" in name)
    assert fusion_of(model) == ("logits" if "distilled" in name else "class")
    assert len(feature_widths(model)) == (12 if transformer else 4)
    assert with_dtype(model, "bfloat16").dtype == jnp.bfloat16


def test_feature_widths():
    model = create_model("regnety_002", w0=8, wa=8.0, wm=2.0, depth=2, group_width=8, stem_width=8)
    _, seen = model.apply(
        model.init(jax.random.key(0), IMAGES), IMAGES, capture_intermediates=True, mutable=["intermediates"]
    )
    stages = [seen["intermediates"][f"s{i + 1}"]["__call__"][0].shape[-1] for i in range(len(feature_widths(model)))]
    assert tuple(stages) == feature_widths(model)


def test_ensemble_accepts_registered_models():
    members = (Pooling(), Drawing())
    variables = [dict(variables_of(members[0])), dict(variables_of(members[1], train=False))]
    logits = [classify(model, each, jnp.asarray(IMAGES)).logits for model, each in zip(members, variables, strict=True)]
    found = classify(Ensemble(members), joined_variables(variables), jnp.asarray(IMAGES)).logits
    mean = (jax.nn.softmax(logits[0]) + jax.nn.softmax(logits[1])) / 2
    np.testing.assert_allclose(jax.nn.softmax(found), mean, rtol=1e-5)


class Faulty(nn.Module):
    """A model with one fault."""

    num_classes: int = 4
    fault: str = "raises"

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(self.num_classes)(images.mean(axis=(1, 2)))
        if self.fault == "raises" or (self.fault == "raises in training" and train):
            raise RuntimeError("the first line\nthe second")
        if self.fault == "stream":
            x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        if self.fault == "collection":
            x = x + self.variable("cache", "value", jnp.zeros, ()).value
        if self.fault == "counter":
            self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        if self.fault == "statistics" and (train or self.is_initializing()):
            mean = self.variable("batch_stats", "mean", jnp.zeros, ())
            mean.value = x.mean(axis=0) if train else mean.value
        return x.astype(jnp.int32) if self.fault == "integers" else x

    @nn.nowrap
    def inference_form(self, variables):
        raise KeyError("kernel")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raises", r"the model Faulty: its call raises RuntimeError: the first line \(.*test_protocol.py, line \d+\)"),
        ("raises in training", r"RuntimeError: the first line \(.*test_protocol.py"),
        ("stream", 'needs PRNG for "noise"'),
        ("collection", "in the collection 'cache'"),
        ("counter", "the variable batch_stats/count is int32; give floating-point variables"),
        ("statistics", "batch_stats after a training step differ"),
        ("integers", "returned int32 as logits; return floating-point logits"),
    ],
)
def test_protocol_violations_raise_one_line_while_tracing(fault, message):
    with pytest.raises(ModelError, match=message) as raised:
        check_outputs(Faulty(fault=fault), 12, train=True)
    assert "\n" not in str(raised.value)


def test_distilled_must_match_the_outputs():
    class Silent(Drawing):
        distilled = False

    class Boasting(Pooling):
        distilled = True

    with pytest.raises(ModelError, match="Silent has distilled=False and returns also distillation_logits"):
        check_outputs(Silent(), 12)
    with pytest.raises(ModelError, match="Boasting has distilled=True and returns no distillation_logits"):
        check_outputs(Boasting(), 12)
    check_outputs(Drawing(), 12, train=True)


def test_required_train_argument_and_faults_of_optional_methods():
    model = Faulty(fault="none")
    check_outputs(model, 12, train=True)
    variables = initial_variables(model, jax.random.key(0), IMAGES)
    assert classify(model, variables, jnp.asarray(IMAGES)).logits.shape == (3, 4)
    with pytest.raises(ModelError, match=r"inference_form raises KeyError: 'kernel' \(.*test_protocol.py"):
        inference_form(model, variables)
    with pytest.raises(ModelError, match="Faulty: its call raises RuntimeError"):
        check_outputs(Faulty(fault="raises in training"), 12, train=True)
    check_outputs(Faulty(fault="raises in training"), 12, train=False)


# --- fusion of heads ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heads():
    rng = np.random.default_rng(0)
    return rng.normal(0, 3, (6, 11)), rng.normal(0, 3, (6, 11))


def softmax(x):
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def test_logits_fusion_is_the_mean(heads):
    class_logits, distillation_logits = heads
    np.testing.assert_allclose(
        fuse(*map(jnp.float32, heads), "logits"), (class_logits + distillation_logits) / 2, rtol=1e-6
    )


def test_softmax_fusion_is_the_log_of_the_mean_probability(heads):
    mean = (softmax(heads[0]) + softmax(heads[1])) / 2
    fused = fuse(*map(jnp.float32, heads), "softmax")
    np.testing.assert_allclose(np.exp(fused), mean, rtol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(fused), mean, rtol=1e-5)


def test_fusions_can_disagree():
    # The class head predicts 0; the distillation head excludes 0 more strongly, and is undecided between 1 and 2.
    class_logits, distillation_logits = jnp.array([[8.0, 0.0, 0.0]]), jnp.array([[-20.0, 0.0, 0.0]])
    assert fuse(class_logits, distillation_logits, "softmax").argmax() == 0
    assert fuse(class_logits, distillation_logits, "logits").argmax() == 1


def test_softmax_fusion_is_stable_for_extreme_logits():
    extreme = jnp.array([[1e4, -1e4, 0.0]])
    fused = fuse(extreme, extreme, "softmax")
    assert jnp.all(jnp.isfinite(fused))
    assert jnp.all(jnp.isfinite(jax.grad(lambda x: fuse(x, -x, "softmax").sum())(extreme)))


def test_class_fusion_is_the_class_head(heads):
    np.testing.assert_array_equal(fuse(*map(jnp.float32, heads), "class"), jnp.float32(heads[0]))


def test_unknown_fusion_is_rejected():
    with pytest.raises(ValueError, match=r"'sum'.*logits, softmax"):
        fuse(jnp.zeros((1, 2)), jnp.zeros((1, 2)), "sum")


def test_output_is_a_pytree_of_its_arrays():
    plain = ModelOutput(jnp.zeros((2, 3)), jnp.zeros((2, 3)), None)
    assert len(jax.tree.leaves(plain)) == 2
    assert isinstance(jax.jit(lambda output: output)(plain), ModelOutput)
