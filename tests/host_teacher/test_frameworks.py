"""Real networks of PyTorch, timm and transformers as teachers. Skipped where they are not installed, as in test_peers.py."""

import json
import re

import jax
import numpy as np
import pytest

import deit_jax
from deit_jax.config import ConfigError
from deit_jax.host_teacher import HostTeacher, changed_field
from deit_jax.host_teacher.identity import fixed_images, relative_difference
from tests.models.timm_names import state_dict_shapes, timm_tensor
from tests.tiny import tiny_config

pytestmark = pytest.mark.long
REGNET = dict(w0=8, wa=8.0, wm=1.5, depth=5, group_width=4)
TORCH = """
import torch

torch.manual_seed(0)
network = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
    torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(8, 4),
)
network.image_size = 20
trained = network


def half(images):  # an answer with a gradient
    network.eval()
    return network(torch.from_numpy(images).permute(0, 3, 1, 2)).bfloat16()


def training(images):
    network.train()
    return network(torch.from_numpy(images).permute(0, 3, 1, 2))


half.image_size = training.image_size = 20
"""


def normalised(config, size, rows):
    """The images of a student, as the recorder hands them on: crops of noise on the fixed images, not only these."""
    noise = np.random.default_rng(5).normal(0, 25, (rows, size, size, 3))
    pixels = np.clip(np.resize(fixed_images(size), (rows, size, size, 3)) + noise, 0, 255)
    return ((pixels / 255 - config.augment.mean) / config.augment.std).astype(np.float32)


def agree(ours, theirs):
    """Logits to 1e-4 of the largest; decisions where the two best are further apart."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert relative_difference(ours, theirs) < 1e-4
    best = np.sort(ours, axis=1)
    clear = best[:, -1] - best[:, -2] > 2e-4 * np.abs(ours).max()
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(ours.argmax(1)[clear], theirs.argmax(1)[clear])


def test_a_torch_module_teaches(modules):
    torch = pytest.importorskip("torch")
    modules(nets=TORCH)
    config = tiny_config(teacher__classes=(2, 0))
    teacher = HostTeacher("nets:trained", config, ("a", "b"), 20)
    images = normalised(config, 20, 5)
    import nets

    with torch.no_grad():
        expected = nets.network.cpu()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()[:, [2, 0]]
    nets.network.to("cuda" if torch.cuda.is_available() else "cpu")
    np.testing.assert_allclose(teacher.logits(images), expected, atol=1e-5)
    assert not nets.network.training
    again = HostTeacher("nets:trained", config, ("a", "b"), 20)
    assert changed_field(json.loads(json.dumps(teacher.identity)), again.identity) is None
    half = HostTeacher("nets:half", config, ("a", "b"), 20)
    np.testing.assert_allclose(half.logits(images), expected, rtol=0.02, atol=0.01)
    with pytest.raises(ConfigError, match="put the model into evaluation mode"):
        HostTeacher("nets:training", config, ("a", "b"), 20)


def test_a_torch_module_that_says_nothing_about_its_images_warns(modules, capsys):
    pytest.importorskip("torch")
    modules(nets=TORCH + "\nsaying = torch.nn.Sequential(*network)\nsaying.mean = saying.std = (0.5, 0.5, 0.5)")
    values = r"mean \(0\.485, 0\.456, 0\.406\), std \(0\.229, 0\.224, 0\.225\); .*set config\.teacher\.mean"
    HostTeacher("nets:trained", tiny_config(), tuple("abcd"), 20)
    line = rf"^warning: --teacher=nets:trained has no mean or std: its images are normalised as the student's, {values}"
    assert re.search(line, capsys.readouterr().out)
    given = tiny_config(teacher__mean=(0.5, 0.5, 0.5), teacher__std=(0.5, 0.5, 0.5))
    for config, spec in ((given, "nets:trained"), (tiny_config(), "nets:saying"), (tiny_config(), "nets:half")):
        HostTeacher(spec, config, tuple("abcd"), 20)
        assert "warning" not in capsys.readouterr().out


def test_what_torch_raises_is_one_line(modules):
    pytest.importorskip("torch")
    modules(nets=TORCH + "\nwide = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(7, 4))")
    with pytest.raises(ConfigError, match=r"^--teacher=nets:wide raises RuntimeError: mat1 and mat2 .*; fix that$"):
        HostTeacher("nets:wide", tiny_config(), tuple("abcd"), 20)


def test_timms_regnet_answers_as_ours(tmp_path):
    pytest.importorskip("timm")
    for name, size, fields in (("regnety_002", 64, REGNET), ("regnety_002", 224, {})):
        model = deit_jax.create_model(name, num_classes=5, **fields) if fields else deit_jax.create_model(name)
        if fields:
            variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, size, size, 3), np.float32))
        else:
            tensors = {key: timm_tensor(key, shape) for key, shape in state_dict_shapes()[name].items()}
            variables = deit_jax.load_weights(tensors, model)
        names = [f"class {number}" for number in range(model.num_classes)]
        folder = tmp_path / str(size)
        deit_jax.save_weights(variables, model, folder, class_names=names)
        config = tiny_config(augment__mean=(0.5, 0.5, 0.5))
        own = {"augment__mean": (0.485, 0.456, 0.406)}
        teacher = HostTeacher(f"timm:{folder}", config, tuple(reversed(names)), 224)
        assert teacher.identity["input_mean"] == pytest.approx([0.485, 0.456, 0.406])
        assert teacher.identity["columns"] == list(reversed(range(len(names))))
        images = normalised(config, 224, 24)
        as_trained = images * 1.0 + (np.asarray(config.augment.mean) - own["augment__mean"]) / config.augment.std
        ours = jax.jit(model.apply)(variables, as_trained.astype(np.float32)).logits[:, ::-1]
        agree(ours, teacher.logits(images))


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_transformers_answers_as_ours(tmp_path, name):
    pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = deit_jax.create_model(name, num_classes=4, image_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    for names in (None, ("w", "x", "y", "z")):
        folder = tmp_path / str(names)
        deit_jax.save_weights(variables, model, folder, "hf", **({"class_names": names} if names else {}))
        config = tiny_config()
        teacher = HostTeacher(f"hf:{folder}", config, ("x", "z") if names else tuple("abcd"), 32)
        assert (teacher.identity["input_size"], teacher.identity["columns"]) == (32, [1, 3] if names else None)
        images = normalised(config, 32, 40)
        ours = np.asarray(jax.jit(model.apply)(variables, images).logits)
        agree(ours[:, [1, 3]] if names else ours, teacher.logits(images))


def test_a_network_without_a_classifier_is_refused(tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = dict(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32, patch_size=8
    )
    transformers.ViTModel(transformers.ViTConfig(**sizes), add_pooling_layer=False).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"size": 32}')
    with pytest.raises(
        ConfigError, match=r"has no weights for classifier\.bias, classifier\.weight, which would be random"
    ):
        HostTeacher(f"hf:{tmp_path}", tiny_config(), ("a", "b"), 32)


@pytest.mark.parametrize(("kind", "package"), [("timm", "timm"), ("hf", "transformers")])
def test_a_model_that_is_not_there_is_one_line(monkeypatch, tmp_path, kind, package, capfd):
    pytest.importorskip("torch"), pytest.importorskip(package)
    for name in (str(tmp_path), "no model of this name"):  # neither asks the hub
        with pytest.raises(
            ConfigError, match=rf"^--teacher={kind}:.* cannot be loaded \(.*\): check the name, or give a local"
        ):
            HostTeacher(f"{kind}:{name}", tiny_config(), tuple("abcd"), 32)
    assert capfd.readouterr().err == ""
