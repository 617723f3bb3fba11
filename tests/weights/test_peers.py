"""Round trips through the real frameworks, with equal logits: every model, every layout.

Skipped where a framework is not installed; the long tier installs PyTorch and transformers (the extras peers and torch). timm and
torchvision need a PyTorch of several gigabytes and are tried by hand (docs/parity.md says with which versions).
"""

import jax
import numpy as np
import pytest

import deit_jax
from deit_jax.augment.pipeline import prepare_for_evaluation
from deit_jax.data.decoding import CenterCrop
from deit_jax.models import list_models
from deit_jax.weights.cards import IMAGENET_MEAN, IMAGENET_STD
from tests.models.timm_names import GOLDEN, photographs, state_dict_shapes, timm_tensor

pytestmark = pytest.mark.long
DEITS = [name for name in list_models() if name.startswith("deit")]
TORCHVISION = {"regnet_y_400mf": "regnety_004", "regnet_y_1_6gf": "regnety_016", "regnet_y_3_2gf": "regnety_032",
               "regnet_y_16gf": "regnety_160", "regnet_y_32gf": "regnety_320"}  # fmt: skip


def images_for(model):
    """Two photographs of the model's size; 96 pixels for a convnet."""
    return photographs(2, getattr(model, "image_size", 96))


@pytest.fixture(scope="module")
def filled():
    """Model and variables by name, from timm's names; the last one is cached."""
    kept = {}

    def fill(name):
        if name not in kept:
            kept.clear()
            model = deit_jax.create_model(name)
            tensors = {key: timm_tensor(key, shape) for key, shape in state_dict_shapes()[name].items()}
            variables = deit_jax.load_weights(tensors, model)
            images = images_for(model)
            kept[name] = model, variables, images, jax.tree.map(np.asarray, jax.jit(model.apply)(variables, images))
        return kept[name]

    return fill


def as_torch(images):
    import torch

    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def assert_close(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    print(f"relative L2 error {error:.1e}")
    assert error <= 1e-5


@pytest.mark.parametrize("name", DEITS)
def test_transformers_round_trip(filled, equal, tmp_path, name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, variables, images, ours = filled(name)
    deit_jax.save_weights(variables, model, tmp_path / "ours", "hf")
    automatic = transformers.AutoModelForImageClassification
    peer, info = automatic.from_pretrained(tmp_path / "ours", output_loading_info=True)
    expected = "DeiTForImageClassificationWithTeacher" if model.distilled else "ViTForImageClassification"
    assert type(peer).__name__ == expected
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert peer.config.layer_norm_eps == 1e-6 and peer.config.num_labels == 1000
    with torch.no_grad():
        theirs = peer.eval()(as_torch(images))
    assert_close(ours.logits, theirs.logits)
    if model.distilled:
        assert_close(ours.class_logits, theirs.cls_logits)
        assert_close(ours.distillation_logits, theirs.distillation_logits)
    peer.save_pretrained(tmp_path / "theirs")
    equal(deit_jax.load_weights(tmp_path / "theirs", model), variables)
    equal(deit_jax.load_weights(peer.state_dict(), model), variables)


def test_transformers_preprocessing_equals_our_evaluation(tmp_path):
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    model = deit_jax.create_model("deit_tiny_patch16_224", depth=1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    deit_jax.save_weights(variables, model, tmp_path, "hf")
    photograph = Image.open(GOLDEN / "crops_china.jpg").convert("RGB")
    assert photograph.width != photograph.height
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)(photograph, return_tensors="np")["pixel_values"]
    pixels = CenterCrop(224, 0.875)(np.asarray(photograph), None)[None]
    ours = np.asarray(prepare_for_evaluation(pixels, IMAGENET_MEAN, IMAGENET_STD)).transpose(0, 3, 1, 2)
    levels = np.abs(ours - theirs) * 255 * np.reshape(IMAGENET_STD, (1, 3, 1, 1))
    assert levels.max() < 1.01 and levels.mean() < 0.02  # version 5 resizes with torchvision, if it is there


@pytest.mark.parametrize("name", list_models())
def test_timm_round_trip(filled, equal, tmp_path, name):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    model, variables, images, ours = filled(name)
    deit_jax.save_weights(variables, model, tmp_path / "ours")
    peer = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    assert peer.pretrained_cfg["crop_pct"] == 0.875 and peer.num_classes == 1000
    with torch.no_grad():
        assert_close(ours.logits, peer(as_torch(images)))
    # As in files of the reference's main.py and its teacher.
    torch.save({"model": peer.state_dict()}, tmp_path / "theirs.pth")
    equal(deit_jax.load_weights(tmp_path / "theirs.pth", model), variables)
    fresh = timm.create_model(name)
    path = deit_jax.save_weights(variables, model, tmp_path / "ours.pth")
    fresh.load_state_dict(torch.load(path, weights_only=True)["model"], strict=True)
    with torch.no_grad():
        assert_close(ours.logits, fresh.eval()(as_torch(images)))


def test_timm_builds_other_shapes_from_our_folder(tmp_path):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    for name, fields in (
        (
            "deit_tiny_distilled_patch16_224",
            {"image_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4},
        ),
        ("regnety_002", {"w0": 8, "wa": 8.0, "wm": 1.5, "depth": 5, "group_width": 4}),
    ):
        model = deit_jax.create_model(name, num_classes=5, **fields)
        images = photographs(2, 32)
        variables = jax.jit(model.init)(jax.random.key(0), images)
        deit_jax.save_weights(variables, model, tmp_path / name, class_names=list("abcde"))
        peer = timm.create_model(f"local-dir:{tmp_path / name}", pretrained=True).eval()
        assert peer.pretrained_cfg["label_names"] == list("abcde")
        with torch.no_grad():
            assert_close(jax.jit(model.apply)(variables, images).logits, peer(as_torch(images)))


@pytest.mark.parametrize("theirs", TORCHVISION)
def test_torchvision_regnets_equal_ours_and_timm(tmp_path, theirs):
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    peer = getattr(torchvision.models, theirs)().eval()
    model = deit_jax.create_model(TORCHVISION[theirs])
    variables = deit_jax.load_weights(peer.state_dict(), model)
    images = images_for(model)
    deit_jax.save_weights(variables, model, tmp_path)
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        expected = peer(as_torch(images))
        assert_close(jax.jit(model.apply)(variables, images).logits, expected)
        assert_close(other(as_torch(images)), expected)


@pytest.mark.parametrize("name", DEITS)
def test_mmpretrain_round_trip(filled, equal, tmp_path, name):
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("mmpretrain.models")
    mmengine = pytest.importorskip("mmengine.runner.checkpoint")
    model, variables, images, ours = filled(name)
    path = deit_jax.save_weights(variables, model, tmp_path / "ours.pth", "mmpretrain")
    head = {"type": "DeiTClsHead" if model.distilled else "VisionTransformerClsHead", "num_classes": 1000}
    head["in_channels"] = model.embed_dim
    kind = "DistilledVisionTransformer" if model.distilled else "VisionTransformer"
    backbone = {"type": kind, "arch": f"deit-{name.split('_')[1]}", "img_size": model.image_size, "patch_size": 16}
    peer = models.build_classifier({"type": "ImageClassifier", "backbone": backbone, "head": head}).eval()
    mmengine.load_checkpoint(peer, str(path), map_location="cpu", strict=True)
    with torch.no_grad():
        assert_close(ours.logits, peer(as_torch(images)))
    torch.save({"state_dict": peer.state_dict(), "meta": {}}, tmp_path / "theirs.pth")
    equal(deit_jax.load_weights(tmp_path / "theirs.pth", model), variables)
