"""Checkpoints of training scripts, with weights under a key and prefixes of names."""

import numpy as np
import pytest

from deit_jax.weights import unwrapping
from deit_jax.weights.errors import WeightsError, shown

from .tensor_files import TENSORS, assert_same


def unwrap(content, which, where):
    entries, _, _ = unwrapping.unwrap(content, which, where)
    return {name: unwrapping.as_numpy(value, f"{where}: {shown(name)}") for name, value in entries.items()}


def test_wrappers_are_removed():
    inner = {"a.weight": TENSORS["a.weight"]}
    for key in ("model", "state_dict", "model_state", "model_ema", "state_dict_ema"):
        assert_same(unwrap({key: inner, "epoch": 3}, None, "it"), inner)


def test_mmengine_swaps_raw_and_averaged_weights():
    raw, averaged = {"module.a": np.zeros(2)}, {"a": np.ones(2)}
    saved = {"state_dict": averaged, "ema_state_dict": {**raw, "steps": np.array(7)}, "meta": {}}
    assert_same(unwrap(saved, "raw", "it"), raw)
    assert_same(unwrap(saved, None, "it"), raw)
    assert_same(unwrap(saved, "ema", "it"), averaged)


def test_control_characters_in_names_are_escaped():
    name = "a\n\x1b[31m" + "x" * 100_000
    with pytest.raises(WeightsError) as refusal:
        unwrap({name: 3}, None, "it")
    assert "\n" not in str(refusal.value) and "\x1b" not in str(refusal.value) and len(str(refusal.value)) < 400


def test_raw_and_averaged_weights_are_distinguished():
    raw, averaged = {"a": np.zeros(2)}, {"a": np.ones(2)}
    both = {"model": raw, "model_ema": averaged, "epoch": 3, "args": object()}
    assert_same(unwrap(both, None, "it"), raw)
    assert_same(unwrap(both, "raw", "it"), raw)
    assert_same(unwrap(both, "ema", "it"), averaged)
    with pytest.raises(WeightsError, match=r"it holds no ema weights, only 1 \(model\)"):
        unwrap({"model": raw}, "ema", "it")
    with pytest.raises(WeightsError, match="which='mean' is neither"):
        unwrap(raw, "mean", "it")


def test_entries_that_are_not_tensors_are_rejected():
    with pytest.raises(WeightsError, match="it: epoch is a int, not a tensor"):
        unwrap({"a": np.zeros(2), "epoch": 3}, None, "it")
    with pytest.raises(WeightsError, match=r"it\['model'\] holds no tensors"):
        unwrap({"model": {}}, None, "it")
