"""Tests `build_program`: the model's fields and the learning rate of every step."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.config import ConfigError
from deit_jax.models.attention import Fused
from deit_jax.models.protocol import attention_on
from deit_jax.parallel.mesh import make_mesh
from deit_jax.training.plan import resolve
from deit_jax.training.program import _build_model_on_mesh, build_model, build_program, build_recorded_model
from tests.tiny import TEACHER, tiny_config, tiny_teacher_config

DISTILLED = {"model__name": "deit_tiny_distilled_patch16_224"}
TAUGHT = {"distillation__kind": "hard", "teacher__weights": "random", "model__name": "deit_tiny_patch16_224"}
NO_TEACHER = {"distillation__kind": "none", "teacher__weights": ""}


def built(**changes):
    overrides = changes.pop("model__overrides", None)
    config = tiny_config(**NO_TEACHER | changes)
    if overrides is not None:
        with config.unlocked():
            config.model.overrides = overrides
    plan = resolve(config, num_images=10_000, data_classes=10)
    return build_program(config, plan, make_mesh(jax.devices()[:1])), plan


def test_the_model_has_the_configured_fields():
    fields = {
        "drop_path_rate": 0.3,
        "dropout_rate": 0.2,
        "drop_dtype": "compute",
        "residual_dtype": "float32",
        "fusion": "softmax",
        "attention": "dot_product",
        "remat": "full",
        "scan_blocks": True,
    }
    changes = {f"model__{name}": value for name, value in fields.items()}
    program, _ = built(model__name="deit_tiny_distilled_patch16_224", **changes | {"distillation__kind": "labels"})
    assert {name: getattr(program.model, name) for name in fields} == fields


def test_a_convnet_has_the_options_of_all_models():
    program, _ = built(
        model__name="regnety_002", model__overrides=TEACHER, model__dropout_rate=0.2, model__drop_path_rate=0.3,
        model__drop_dtype="compute", model__regnet_init="timm_0.3",
    )  # fmt: skip
    assert (program.model.drop_dtype, program.model.regnet_init) == ("compute", "timm_0.3")
    assert (program.model.dropout_rate, program.model.drop_path_rate, program.model.depth) == (
        0.2,
        0.3,
        TEACHER["depth"],
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__name": "regnety_004", "model__attention": "dot_product"}, "attention='dot_product': regnety_004 does not"),
        ({"model__scan_blocks": True, "model__name": "regnety_002"}, "scan_blocks=True: regnety_002 does not have"),
        ({"model__residual_dtype": "float32", "model__name": "regnety_002"}, "residual_dtype='float32': regnety_002 does not"),
        ({"model__regnet_init": "timm_0.3"}, "regnet_init='timm_0.3': deit_tiny_patch16_224 does not have"),
        ({"model__fusion": "softmax"}, "fusion='softmax': deit_tiny_patch16_224 has one head"),
        ({"model__name": "deit_tiny_distilled_patch16_224"}, "kind=none does not train .*model.name=deit_tiny_patch16_224"),
        ({"model__overrides": {"distilled": True}}, "kind=none does not train .*model.overrides.distilled=False"),
        ({**DISTILLED, "distillation__kind": "labels", "distillation__alpha": 0.0}, "alpha=0 does not train the distillation "
         "head of .*fusion=logits makes part"),
        ({**DISTILLED, "distillation__kind": "labels", "distillation__alpha": 1.0}, "alpha=1 does not train the class head of"),
        ({**TAUGHT, **DISTILLED, "distillation__alpha": 0.0, "model__fusion": "class"}, "alpha=0: nothing would be learned "
         "from the teacher: .*kind=labels_class"),
        ({**TAUGHT, "distillation__alpha": 0.0}, "alpha=0: nothing would be learned .*kind=none"),
    ],
)  # fmt: skip
def test_options_without_effect_and_heads_without_a_target_raise(changes, message):
    with pytest.raises(ConfigError, match=message):
        built(**{"model__overrides": {}, "image_size": 32} | changes)


def test_a_workdir_whose_options_were_ignored_can_still_be_read():
    config = tiny_teacher_config()
    config.model.remat = "full"
    record = json.loads(config.to_json_best_effort())
    resolved = {"num_classes": 10, "image_size": 28, "compute_dtype": "float32"}
    assert build_recorded_model({"config": record, "resolved": resolved}).depth == TEACHER["depth"]


@pytest.mark.parametrize(("kind", "per_step"), [("released", False), ("plain", False), ("plain", True)])
def test_the_learning_rate_follows_the_configured_schedule(kind, per_step):
    program, plan = built(schedule__kind=kind, schedule__per_step=per_step, schedule__base_learning_rate=0.5)
    # Only the rate is used, so the compiler removes the rest of the step.
    rate_of = jax.jit(lambda state, batch: program.train_step.__wrapped__(state, None, batch)[1]["learning_rate"])
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), program.abstract_state)
    batch = {"image": jnp.zeros((32, 28, 28, 3), jnp.uint8), "label": jnp.zeros(32, jnp.int32)}
    steps = np.array([0, 1, 311, 312, 313, 624, 700])
    rates = [rate_of(state.replace(step=jnp.int32(step)), batch) for step in steps]
    assert plan.steps_per_epoch == 312
    epochs = steps / 312 if per_step else steps // 312
    epochs = np.maximum(epochs - 1, 0) if kind == "released" else epochs
    np.testing.assert_allclose(rates, 1e-3 + epochs * (0.5 - 1e-3) / 5, rtol=1e-5)  # within the five epochs of warm-up


def test_a_resumed_run_with_a_head_without_a_target_only_warns(capsys):
    config = tiny_config()
    config.distillation.kind, config.teacher.weights = "none", ""
    plan = resolve(config, num_images=10_000, data_classes=10)
    with pytest.raises(ConfigError, match="does not train the distillation token"):
        build_program(config, plan, make_mesh(jax.devices()[:1]))
    build_program(config, plan, make_mesh(jax.devices()[:1]), resumed=True)
    assert "the run continues as an earlier version started it" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("started_with", "why"),
    [(None, None), ("xla", None), ("of a later version", None), ("pallas", "computes on TPUs only")],
)
def test_a_resumed_run_keeps_its_attention_where_it_can(capsys, started_with, why):
    config = tiny_config(**NO_TEACHER)
    plan = resolve(config, num_images=10_000, data_classes=10)
    program = build_program(config, plan, make_mesh(jax.devices()[:1]), resumed=True, attention=started_with)
    assert program.model.attention == program.attention.name == "xla"
    said = " ".join(capsys.readouterr().out.split())
    assert ("started with attention=pallas and continues with xla" in said) == (why is not None) and (why or "") in said


def test_a_run_that_started_without_the_kernel_continues_without_it():
    """On a device where auto would take it now."""
    config = tiny_config(**NO_TEACHER, compute_dtype="bfloat16", image_size=112)
    with config.unlocked():
        config.model.overrides = {"patch_size": 14, "embed_dim": 64, "depth": 2, "num_heads": 1}
    plan = resolve(config, num_images=10_000, data_classes=10, platform="tpu")
    device = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
    mesh = SimpleNamespace(devices=np.array([device]), size=1)
    model = build_model(config, num_classes=10, image_size=112, compute_dtype="bfloat16")
    assert attention_on(model, mesh)[0] == "pallas"
    found, choice = _build_model_on_mesh(config, plan, mesh, "xla")
    assert (found.attention, choice) == ("xla", ("xla", "with which the run started"))
    found, choice = _build_model_on_mesh(config, plan, mesh, None)
    assert (found.attention, choice.name) == (Fused("pallas", mesh), "pallas")


@pytest.mark.parametrize(
    ("batch_size", "resumed", "warned"), [(502, False, True), (502, True, False), (496, False, False)]
)
def test_tiny_mixing_groups_cause_a_warning(capsys, batch_size, resumed, warned):
    config = tiny_config(train__batch_size=batch_size, augment__max_group_size=64)
    plan = resolve(config, num_images=10_000, data_classes=10)
    build_program(config, plan, make_mesh(jax.devices()[:1]), resumed=resumed)
    said = " ".join(capsys.readouterr().out.split())
    assert ("config.train.batch_size=502 has few divisors: its mixing groups have 2 rows" in said) == warned
    assert not warned or "a batch of 496 rows has larger groups" in said
