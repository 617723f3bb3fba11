"""Names with a prefix, and several sets of weights in one file."""

import logging

import jax
import numpy as np
import pytest

import deit_jax
from deit_jax.weights import WeightsError, load_weights, timm
from deit_jax.weights.loading import LAYOUTS, count_classes, fit_weights
from deit_jax.weights.unwrapping import weight_sets

from .layout_golden import SMALL, layout_state

PLAIN, DISTILLED = "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"
SMALL_MODEL = deit_jax.create_model(PLAIN, **SMALL)
TEN = np.zeros((10, 48), np.float32)


@pytest.fixture(scope="module")
def states(recorded_shapes):
    """The same small plain model in every layout."""
    found = {
        layout: layout_state(recorded_shapes[layout]["small_plain"]) for layout in ("hf_v4", "hf_v5", "mmpretrain")
    }
    return found | {"timm": timm.from_variables(load_weights(found["hf_v4"], SMALL_MODEL))}


@pytest.fixture(scope="module")
def distilled(recorded_shapes):
    tensors = layout_state(recorded_shapes["hf_v4"]["small_distilled"])
    return timm.from_variables(load_weights(tensors, deit_jax.create_model(DISTILLED, **SMALL)))


def under(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def doubled(tensors):
    return {name: 2 * tensor for name, tensor in tensors.items()}


def classes(tensors, number):
    return tensors | {"head.weight": np.zeros((number, 48), np.float32), "head.bias": np.zeros(number, np.float32)}


PREFIXES = [
    "model.", "net.", "backbone.", "student.", "encoder.", "module.", "_orig_mod.", "my_classifier_2.", "model._orig_mod.",
    "_orig_mod.module.", "module.model.net.", "0.", "deit.", "vit.",
]  # fmt: skip


@pytest.mark.parametrize("layout", ["hf_v4", "hf_v5", "mmpretrain", "timm"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_common_prefix_is_removed_and_reported(states, equal, layout, prefix):
    expected = load_weights(states[layout], SMALL_MODEL)
    fitted = fit_weights({"state_dict": under(prefix, states[layout]), "epoch": 3}, SMALL_MODEL)
    equal(fitted.variables, expected)
    assert fitted.note == f'removed the prefix "{prefix}" from the names'


def test_names_without_prefix_have_no_note(states):
    assert {fit_weights(tensors, SMALL_MODEL).note for tensors in states.values()} == {""}


def test_prefixes_of_regnets_are_removed(recorded_shapes):
    for layout, names in (("torchvision", ["regnet_y_400mf"]), ("pycls", ["regnety_002"])):
        for name in names:
            shapes = recorded_shapes[layout][name]
            tensors = {f"model.net.{key}": np.broadcast_to(np.float32(1), shape) for key, shape in shapes.items()}
            ((found,), _) = weight_sets(tensors, None, "it", LAYOUTS)
            assert (found.layout.name, found.prefix, set(found.tensors)) == (layout, "model.net.", set(shapes))


def test_a_lightning_checkpoint(states, equal, tmp_path):
    state = under("net.", states["timm"]) | {
        "criterion.weight": np.ones(10, np.float32),
        "val_accuracy.confmat": np.zeros((10, 10), np.int64),
        "head_of_another_task.weight": TEN,
    }
    checkpoint = {
        "epoch": 2,
        "global_step": 7,
        "pytorch-lightning_version": "2.5",
        "state_dict": state,
        "optimizer_states": [{"state": {0: {"exp_avg": TEN}}, "param_groups": [{"lr": 1e-3}]}],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 1e-3, "name": "deit"},
    }
    fitted = fit_weights(checkpoint, SMALL_MODEL)
    equal(fitted.variables, load_weights(states["timm"], SMALL_MODEL))
    assert fitted.note == (
        'removed the prefix "net." from the names, '
        "ignored 3 (criterion.weight, val_accuracy.confmat, head_of_another_task.weight)"
    )
    reports = []
    np.savez(tmp_path / "a.npz", **state)
    load_weights(tmp_path / "a.npz", SMALL_MODEL, report=reports.append)
    assert reports == [f"{tmp_path / 'a.npz'}: {fitted.note}"]


def test_removed_prefix_is_logged(states, caplog):
    with caplog.at_level(logging.INFO, "deit_jax"):
        load_weights(under("net.", states["timm"]), SMALL_MODEL)
    assert 'the mapping: removed the prefix "net."' in caplog.text


def test_ignored_head_outside_the_backbone_is_reported(states):
    backbone = {name: tensor for name, tensor in states["timm"].items() if not name.startswith("head.")}
    state = under("backbone.", backbone) | {"classifier.weight": TEN}
    with pytest.raises(WeightsError, match=r"missing 2 \(head\.(weight|bias)"):
        load_weights(state, SMALL_MODEL)
    fitted = fit_weights(state, SMALL_MODEL, heads="reset_if_needed")
    assert fitted.renewed == ("head",) and "ignored 1 (classifier.weight)" in fitted.note


@pytest.mark.parametrize("names", [("student.", "teacher."), ("", "teacher."), ("a.", "a.b.")])
def test_fitting_set_of_several_is_used(states, distilled, equal, names):
    one, other = names
    expected = load_weights(states["timm"], SMALL_MODEL)
    for this, that in ((one, other), (other, one)):
        fitted = fit_weights(under(this, states["timm"]) | under(that, distilled), SMALL_MODEL)
        equal(fitted.variables, expected)
        sets = "; ".join(f"{name}*" if name else "names without a prefix" for name in sorted(names))
        assert "ignored " in fitted.note and fitted.note.endswith(f"; only this one of several sets ({sets}) fits")


def test_student_is_found_next_to_a_regnet_teacher(states, recorded_shapes, equal):
    teacher = {
        name: np.broadcast_to(np.float32(1), shape) for name, shape in recorded_shapes["pycls"]["regnety_002"].items()
    }
    fitted = fit_weights(under("student.", states["timm"]) | under("teacher.", teacher), SMALL_MODEL)
    equal(fitted.variables, load_weights(states["timm"], SMALL_MODEL))


def test_several_fitting_sets_are_rejected(states):
    checkpoint = {"student": under("module.", states["timm"]), "teacher": states["timm"], "epoch": 3}
    with pytest.raises(WeightsError, match=r"several sets of weights that fit: student\.module\.\*, teacher\.\*; save"):
        load_weights(checkpoint, SMALL_MODEL)
    with pytest.raises(WeightsError, match=r"several sets of weights that fit: names without a prefix, old\.\*; save"):
        load_weights(states["timm"] | under("old.", states["timm"]), SMALL_MODEL)


def test_fitting_set_with_nan_is_rejected(states, distilled):
    faulty = states["timm"] | {"norm.bias": np.full(48, np.nan, np.float32)}
    with pytest.raises(WeightsError, match=r"norm\.bias: 48 of 48 NaN"):
        load_weights(under("student.", faulty) | under("teacher.", distilled), SMALL_MODEL)


def test_several_sets_without_a_fit(states):
    both = under("student.", classes(states["timm"], 3)) | under("teacher.", classes(states["timm"], 4))
    with pytest.raises(
        WeightsError, match=r"several sets of weights, student\.\*, teacher\.\*, and none fits; the first: "
    ) as error:
        load_weights(both, SMALL_MODEL)
    assert "\n" not in str(error.value) and "(3, 48), not (10, 48)" in str(error.value)


@pytest.mark.parametrize("key", ["net", "model_state_dict", "weights", "backbone"])
def test_weights_under_another_key(states, equal, key):
    checkpoint = {key: states["timm"], "acc": 71.5, "epoch": 3, "optimizer_state_dict": {"state": {0: {"m": TEN}}}}
    equal(load_weights(checkpoint, SMALL_MODEL), load_weights(states["timm"], SMALL_MODEL))


def test_averages_are_identified_by_the_word_ema(states, equal):
    raw, average = load_weights(states["timm"], SMALL_MODEL), load_weights(doubled(states["timm"]), SMALL_MODEL)
    for one, other in (
        ("model.", "ema_model.module."),
        ("net.", "net_ema."),
        ("", "ema.module."),
        ("a.", "model_ema."),
    ):
        both = under(one, states["timm"]) | under(other, doubled(states["timm"]))
        for content in (both, {"state_dict": both}):
            equal(load_weights(content, SMALL_MODEL), raw)
            equal(load_weights(content, SMALL_MODEL, which="raw"), raw)
            equal(load_weights(content, SMALL_MODEL, which="ema"), average)
    alone = under("ema.", states["timm"])
    equal(load_weights(alone, SMALL_MODEL), raw)
    with pytest.raises(WeightsError, match=r"holds only a moving average, under 1 \(ema\.\): load it with which='ema'"):
        load_weights(alone, SMALL_MODEL, which="raw")
    with pytest.raises(WeightsError, match="does not say that it holds a moving average"):
        load_weights(states["timm"], SMALL_MODEL, which="ema")


def test_averages_of_timm_and_mmengine_with_prefixes(states, equal):
    average = load_weights(doubled(states["timm"]), SMALL_MODEL)
    raw = under("module.", states["timm"])
    checkpoint = {"state_dict": raw, "state_dict_ema": under("module.", doubled(states["timm"])), "arch": "deit"}
    equal(load_weights(checkpoint, SMALL_MODEL, which="ema"), average)
    mmengines = {"state_dict": doubled(states["timm"]), "ema_state_dict": {**raw, "steps": np.array(7)}}
    equal(load_weights(mmengines, SMALL_MODEL, which="ema"), average)
    equal(load_weights(mmengines, SMALL_MODEL), load_weights(states["timm"], SMALL_MODEL))


def test_classes_are_counted_after_a_prefix(states, tmp_path):
    np.savez(tmp_path / "a.npz", **under("model.", states["timm"]))
    assert count_classes(tmp_path / "a.npz") == 10
    np.savez(tmp_path / "b.npz", **under("a.", states["timm"]), **under("b.", classes(states["timm"], 3)))
    with pytest.raises(WeightsError, match=r"several sets of weights, a\.\* with 10 classes, b\.\* with 3 classes"):
        count_classes(tmp_path / "b.npz")


def test_misfit_shows_the_prefix(states):
    tensors = {name: tensor for name, tensor in states["timm"].items() if name != "blocks.1.norm1.bias"}
    with pytest.raises(WeightsError, match=r"the mapping \(net\.\*\) \(timm\) does not fit .*blocks\.1\.norm1\.bias"):
        load_weights(under("net.", tensors), SMALL_MODEL)


def test_a_prefix_with_control_characters_is_shown_escaped(states):
    note = fit_weights(under("\x1b[31m.", states["timm"]), SMALL_MODEL).note
    assert "\x1b" not in note and "\\x1b[31m." in note


def test_jax_arrays_are_accepted(states, equal):
    tensors = jax.tree.map(jax.numpy.asarray, under("model.", states["timm"]))
    equal(load_weights(tensors, SMALL_MODEL), load_weights(states["timm"], SMALL_MODEL))
