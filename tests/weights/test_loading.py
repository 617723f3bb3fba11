import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deit_jax
from deit_jax.weights import WeightsError, load_weights, loading, save_weights, timm
from deit_jax.weights.errors import MisfitError
from tests.models.timm_names import GOLDEN as MODEL_GOLDEN
from tests.models.timm_names import our_variables, photographs, state_dict_shapes, timm_tensor

from .layout_golden import GOLDEN, PHOTOGRAPHS, REGNET_IMAGE_SIZE, SMALL, layout_state

PLAIN, DISTILLED = "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"


def small(distilled, **changes):
    return deit_jax.create_model(DISTILLED if distilled else PLAIN, **(SMALL | changes))


@pytest.fixture(scope="module")
def answers():
    """Recorded outputs of the peers: see tests/golden/record_layouts.py."""
    with np.load(GOLDEN / "layouts.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def state(recorded_shapes):
    """The state dict of a small transformers model, plain or distilled."""
    return lambda distilled: layout_state(recorded_shapes["hf_v4"]["small_distilled" if distilled else "small_plain"])


def assert_close(found, expected, limit=1e-5):
    error = np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)
    assert error <= limit, error


# --- logits of every layout equal its framework's -------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["hf_v4", "hf_v5", "mmpretrain"])
def test_plain_model_equals_other_frameworks(recorded_shapes, answers, layout):
    model = small(False)
    variables = load_weights(layout_state(recorded_shapes[layout]["small_plain"]), model)
    assert set(variables) == {"params"}
    output = jax.jit(model.apply)(variables, photographs(PHOTOGRAPHS, SMALL["image_size"]))
    assert_close(output.logits, answers[f"{layout}/plain"])


@pytest.mark.parametrize("layout", ["hf_v4", "hf_v5", "mmpretrain"])
def test_both_heads_equal_other_frameworks(recorded_shapes, answers, layout):
    model = small(True)
    variables = load_weights(layout_state(recorded_shapes[layout]["small_distilled"]), model)
    output = jax.jit(model.apply)(variables, photographs(PHOTOGRAPHS, SMALL["image_size"]))
    found = [output.class_logits, output.distillation_logits, output.logits]
    for ours, theirs in zip(found, answers[f"{layout}/distilled"], strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("layout", "theirs", "ours"),
    [("torchvision", "regnet_y_400mf", "regnety_004"), ("pycls", "regnety_002", "regnety_002")],
)
def test_regnets_equal_other_frameworks(recorded_shapes, answers, layout, theirs, ours):
    # pycls uses BGR images, our models RGB.
    model = deit_jax.create_model(ours)
    variables = load_weights(layout_state(recorded_shapes[layout][theirs]), model)
    output = jax.jit(model.apply)(variables, photographs(PHOTOGRAPHS, REGNET_IMAGE_SIZE))
    assert_close(output.logits, answers[f"{layout}/{theirs}"])


def test_timm_names_become_ours():
    for name in (DISTILLED, "regnety_002"):
        shapes = state_dict_shapes()[name]
        variables = load_weights(
            {key: timm_tensor(key, shape) for key, shape in shapes.items()}, deit_jax.create_model(name)
        )
        assert jax.tree.structure(variables) == jax.tree.structure(our_variables(shapes))
        for found, expected in zip(jax.tree.leaves(variables), jax.tree.leaves(our_variables(shapes)), strict=True):
            np.testing.assert_array_equal(found, expected)


TORCHVISION = {
    "regnet_y_400mf": "regnety_004",
    "regnet_y_1_6gf": "regnety_016",
    "regnet_y_3_2gf": "regnety_032",
    "regnet_y_16gf": "regnety_160",
    "regnet_y_32gf": "regnety_320",
}


@pytest.mark.parametrize("layout", ["hf_v4", "hf_v5", "hf_v5_disk", "mmpretrain", "torchvision", "pycls"])
def test_names_and_shapes_of_released_models_become_timms(recorded_shapes, layout):
    timms = state_dict_shapes()
    names = {
        name: TORCHVISION.get(name, name) for name in recorded_shapes[layout] if TORCHVISION.get(name, name) in timms
    }
    assert len(names) == {"torchvision": 5, "pycls": 12}.get(layout, 8)
    for theirs, ours in names.items():
        tensors = {key: np.broadcast_to(np.float32(0), shape) for key, shape in recorded_shapes[layout][theirs].items()}
        (layout_of_names,) = [it for it in loading.LAYOUTS if "" in it.prefixes(tensors)]
        found, unknown = layout_of_names.to_timm(tensors)
        assert not unknown
        assert {key: t.shape for key, t in found.items()} == timms[ours], ours


def test_torchvision_networks_with_other_widths_are_rejected(recorded_shapes):
    for theirs, ours in (("regnet_y_800mf", "regnety_008"), ("regnet_y_8gf", "regnety_080")):
        zeros = {key: np.zeros(shape, np.float32) for key, shape in recorded_shapes["torchvision"][theirs].items()}
        with pytest.raises(WeightsError, match=f"{theirs} .* is a different network from {ours}: torchvision rounds"):
            load_weights(zeros, deit_jax.create_model(ours))


# --- misfits are rejected completely --------------------------------------------------------------------------------


def test_misfits_are_listed_completely(state):
    tensors = state(True)
    del tensors["deit.layernorm.bias"]
    tensors["deit.encoder.layer.2.output.dense.bias"] = np.zeros(48, np.float32)
    tensors["deit.pooler.dense.bias"] = np.zeros(48, np.float32)
    tensors["deit.encoder.layer.0.intermediate.dense.weight"] = np.zeros((191, 48), np.float32)
    with pytest.raises(MisfitError) as refusal:
        load_weights(tensors, small(True))
    assert refusal.value.missing == ["deit.layernorm.bias"]
    assert refusal.value.unexpected == ["deit.encoder.layer.2.output.dense.bias", "deit.pooler.dense.bias"]
    assert refusal.value.misshapen == ["deit.encoder.layer.0.intermediate.dense.weight (191, 48), not (192, 48)"]
    message = str(refusal.value)
    assert "\n" not in message
    for part in ("missing 1 (deit.layernorm.bias)", "unexpected 2 (", "of another shape 1 (", "transformers"):
        assert part in message


def test_missing_third_of_qkv_is_named(state):
    tensors = state(False)
    del tensors["vit.encoder.layer.1.attention.attention.key.bias"]
    with pytest.raises(MisfitError) as refusal:
        load_weights(tensors, small(False))
    assert refusal.value.missing == ["vit.encoder.layer.1.attention.attention.key.bias"]
    assert refusal.value.unexpected == []


def test_unknown_layout_shows_its_names():
    with pytest.raises(
        WeightsError, match=r"in no known layout \(timm, .*pycls, flax\); its names are 1 \(conv1.weight\)"
    ):
        load_weights({"conv1.weight": np.zeros((2, 2), np.float32)}, small(False))


def test_integers_are_rejected(state):
    tensors = state(False)
    tensors["classifier.bias"] = np.zeros(10, np.int32)
    with pytest.raises(WeightsError, match=r"not floating-point numbers: 1 \(classifier.bias: int32\)"):
        load_weights(tensors, small(False))


def test_integers_in_q_k_and_v_are_rejected(state):
    tensors = state(False)
    name = "vit.encoder.layer.0.attention.attention.query.weight"
    tensors[name] = np.round(100 * tensors[name]).astype(np.int8)
    with pytest.raises(WeightsError, match=r"1 \(vit\.encoder\.layer\.0\.attention\.attention\.query\.weight: int8\)"):
        load_weights(tensors, small(False))


@pytest.mark.parametrize("shape", [(), (47,), (48, 1)])
def test_misshapen_third_of_qkv_is_named(state, shape):
    tensors = state(False)
    tensors["vit.encoder.layer.1.attention.attention.key.bias"] = np.zeros(shape, np.float32)
    with pytest.raises(MisfitError) as refusal:
        load_weights(tensors, small(False))
    assert refusal.value.missing == refusal.value.unexpected == []
    assert refusal.value.misshapen == [f"vit.encoder.layer.1.attention.attention.key.bias {shape}, not (48,)"]


def test_messages_use_the_names_of_the_file(recorded_shapes, state):
    tensors = layout_state(recorded_shapes["hf_v5"]["small_plain"])
    name = next(it for it in tensors if it.endswith("layers.1.attention.k_proj.bias"))
    del tensors[name]
    with pytest.raises(MisfitError) as refusal:
        load_weights(tensors, small(False))
    assert (refusal.value.missing, refusal.value.unexpected) == ([name], [])


def test_unexpected_tensors_of_a_head_are_not_dropped(state):
    tensors = state(False) | {"classifier.norm.weight": np.zeros(3, np.float32)}
    timms = timm.from_variables(load_weights(state(False), small(False))) | {
        "head.fc.weight": np.zeros((3, 3), np.float32)
    }
    for source in (tensors, timms, state(False) | {"vit.layernorm.num_batches_tracked": np.array(3)}):
        with pytest.raises(MisfitError, match="unexpected 1"):
            load_weights(source, small(False), heads="reset")


@pytest.mark.parametrize("prefix", ["", "deit."])
def test_tensor_with_two_prefixes_is_rejected(state, prefix):
    tensors = state(False) | {f"{prefix}layernorm.bias": np.zeros(48, np.float32)}
    with pytest.raises(WeightsError, match="occurs with two prefixes"):
        load_weights(tensors, small(False))


def test_mixed_layouts_are_rejected(state):
    tensors = state(False)
    tensors["vit.layers.0.layernorm_before.bias"] = tensors["vit.encoder.layer.0.layernorm_before.bias"]
    with pytest.raises(WeightsError, match=r"two tensors map to blocks\.0\.norm1\.bias"):
        load_weights(tensors, small(False))


def test_unknown_choices_are_rejected(state):
    with pytest.raises(WeightsError, match="heads='drop' is none of keep, reset, reset_if_needed"):
        load_weights(state(False), small(False), heads="drop")
    with pytest.raises(WeightsError, match="distillation_token='new' is none of keep, adapt"):
        load_weights(state(False), small(False), distillation_token="new")


def test_half_precision_becomes_float32(state):
    halves = {name: tensor.astype(jnp.bfloat16) for name, tensor in state(False).items()}
    variables = load_weights(halves, small(False))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(variables["params"]["norm"]["bias"], np.float32(halves["vit.layernorm.bias"]))


# --- heads ----------------------------------------------------------------------------------------------------------


def test_another_number_of_classes_needs_heads(state):
    model = small(True, num_classes=7)
    with pytest.raises(MisfitError, match=r"cls_classifier\.weight \(10, 48\), not \(7, 48\).*heads='reset_if_needed'"):
        load_weights(state(True), model)
    variables = load_weights(state(True), model, heads="reset_if_needed", seed=3)
    for head in ("head", "head_dist"):
        kernel = variables["params"][head]["kernel"]
        assert kernel.shape == (48, 7) and abs(float(np.std(kernel)) - 0.02) < 0.003  # the initialisation's
        assert not np.any(variables["params"][head]["bias"])
    assert np.abs(variables["params"]["head"]["kernel"] - variables["params"]["head_dist"]["kernel"]).max() > 0.01
    np.testing.assert_array_equal(variables["params"]["norm"]["bias"], state(True)["deit.layernorm.bias"])


def test_fitting_heads_are_kept_or_reset(state, equal):
    model = small(True)
    kept = load_weights(state(True), model)
    equal(load_weights(state(True), model, heads="reset_if_needed"), kept)
    reset = load_weights(state(True), model, heads="reset")
    for head in ("head", "head_dist"):
        assert np.abs(reset["params"][head]["kernel"] - kept["params"][head]["kernel"]).max() > 0.01
        assert not np.any(reset["params"][head]["bias"])


def test_missing_heads_are_initialised_only_on_request(state):
    backbone = {name.removeprefix("vit."): t for name, t in state(False).items() if not name.startswith("classifier")}
    with pytest.raises(MisfitError, match=r"missing 2 \(classifier\.(bias|weight), classifier\.(bias|weight)\)"):
        load_weights(backbone, small(False))
    variables = load_weights(backbone, small(False), heads="reset_if_needed")
    assert variables["params"]["head"]["kernel"].shape == (48, 10)


# --- with and without the distillation token ------------------------------------------------------------------------


def test_plain_file_for_a_distilled_model_needs_adapt(state):
    with pytest.raises(MisfitError, match="distillation_token='adapt'"):
        load_weights(state(False), small(True))
    plain = load_weights(state(False), small(False))["params"]
    seeded = load_weights(state(False), small(True), distillation_token="adapt")["params"]
    np.testing.assert_array_equal(seeded["dist_token"], plain["cls_token"])
    np.testing.assert_array_equal(seeded["head_dist"]["kernel"], plain["head"]["kernel"])
    np.testing.assert_array_equal(seeded["pos_embed"][:, 2:], plain["pos_embed"][:, 1:])
    np.testing.assert_array_equal(seeded["pos_embed"][:, 1], plain["pos_embed"][:, 0])
    output = jax.jit(small(True).apply)({"params": seeded}, photographs(2, 32))
    assert_close(output.distillation_logits, np.asarray(output.class_logits, np.float64))


def test_distilled_file_for_a_plain_model_needs_adapt(state):
    with pytest.raises(MisfitError, match="distillation_token='adapt'"):
        load_weights(state(True), small(False))
    distilled = load_weights(state(True), small(True))["params"]
    plain = load_weights(state(True), small(False), distillation_token="adapt")["params"]
    expected = {name: leaf for name, leaf in distilled.items() if name not in ("dist_token", "head_dist")}
    assert set(plain) == set(expected)
    np.testing.assert_array_equal(plain["pos_embed"][:, 0], distilled["pos_embed"][:, 0])
    np.testing.assert_array_equal(plain["pos_embed"][:, 1:], distilled["pos_embed"][:, 2:])


def test_token_size_and_classes_change_together(state):
    model = small(True, image_size=48, num_classes=7)
    variables = load_weights(state(False), model, distillation_token="adapt", heads="reset_if_needed")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 48, 48, 3)))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)


# --- another image size ---------------------------------------------------------------------------------------------


def test_position_embeddings_are_resized_as_in_pytorch():
    """14x14 to 24x24, as from 224 to 384 pixels; those of the tokens are unchanged."""
    with np.load(MODEL_GOLDEN / "models.npz") as arrays:
        expected = arrays["pos_embed/bicubic_24x24"]
    fields = {"embed_dim": 3, "num_heads": 1, "depth": 1, "num_classes": 2}
    for name, prefix in ((PLAIN, 1), (DISTILLED, 2)):
        model = deit_jax.create_model(name, **fields)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        tokens = np.arange(3 * prefix, dtype=np.float32).reshape(1, prefix, 3)
        patches = timm_tensor("pos_embed", (1, 14 * 14, 3))
        variables["params"]["pos_embed"] = np.concatenate([tokens, patches], axis=1)
        tensors = timm.from_variables(variables)
        found = load_weights(tensors, deit_jax.create_model(name, image_size=384, **fields))["params"]["pos_embed"]
        np.testing.assert_array_equal(found[:, :prefix], tokens)
        np.testing.assert_allclose(found[:, prefix:], expected, atol=2e-6)
        same = load_weights(tensors, model)["params"]["pos_embed"]
        np.testing.assert_array_equal(same, variables["params"]["pos_embed"])


def test_position_embedding_without_square_grid_is_rejected(state):
    tensors = state(False)
    tensors["vit.embeddings.position_embeddings"] = np.zeros((1, 1 + 15, 48), np.float32)
    with pytest.raises(WeightsError, match="16 tokens has no square grid after 1 prefix"):
        load_weights(tensors, small(False))
    for tokens in (0, 1):
        tensors["vit.embeddings.position_embeddings"] = np.zeros((1, tokens, 48), np.float32)
        with pytest.raises(WeightsError, match=f"{tokens} tokens has no square grid"):
            load_weights(tensors, small(False))


# --- sources --------------------------------------------------------------------------------------------------------


def test_files_folders_and_wrapped_mappings_are_equivalent(state, tmp_path, equal):
    model = small(True)
    expected = load_weights(state(True), model)
    path = save_weights(expected, model, tmp_path / "folder", "hf")
    np.savez(tmp_path / "a.npz", **state(True))
    for source in (path, str(path), tmp_path / "folder", tmp_path / "a.npz", {"model_ema": state(True), "epoch": 3}):
        equal(load_weights(source, model), expected)


def test_which_selects_the_average(state):
    both = {"model": state(False), "model_ema": {name: 2 * tensor for name, tensor in state(False).items()}}
    raw, ema = (load_weights(both, small(False), which=which)["params"]["norm"]["bias"] for which in (None, "ema"))
    np.testing.assert_array_equal(2 * raw, ema)


@pytest.mark.long
def test_torch_tensors_are_accepted(state):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(tensor) for name, tensor in state(False).items()}
    found, expected = (load_weights(source, small(False)) for source in (tensors, state(False)))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)
