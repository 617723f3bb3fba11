"""Networks from every kind of source, equal in all modes."""

import dataclasses

import jax
import numpy as np
import pytest

from deit_jax.config import ConfigError
from deit_jax.data.decoding import CenterCrop
from deit_jax.data.registry import open_source
from deit_jax.inference.classifier import Classifier
from deit_jax.models import create_model
from deit_jax.models.protocol import fixed_image_size, fusion_of
from deit_jax.modes.compared import compared_networks
from deit_jax.modes.evaluate import evaluate, evaluated_networks
from deit_jax.modes.export import export
from deit_jax.modes.initial import load_initial
from deit_jax.modes.predict import _configured_network, predict
from deit_jax.modes.teacher import load_teacher
from deit_jax.network import load_network, load_networks
from deit_jax.network_sources import wanted_by
from deit_jax.training.checkpoint_folder import CheckpointError
from deit_jax.training.network_identity import weights_digest
from deit_jax.weights import WeightsError, hub, save_weights
from deit_jax.weights.cards import IMAGENET_MEAN, IMAGENET_STD
from deit_jax.weights.class_names import imagenet_class_names, imagenet_wordnet_ids
from tests.inference.conftest import CHINA
from tests.modes.workdirs import untrained
from tests.tiny import STUDENT, tiny_config, tiny_teacher_config

NAME = "deit_tiny_distilled_patch16_224"
NAMES = open_source(tiny_config().data, "train").class_names
ALONE = {"distillation__kind": "labels", "teacher__weights": ""}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a distilled DeiT with softmax fusion and an evaluation crop of 28 of 32 pixels."""
    config = tiny_config(model__fusion="softmax", evaluation__crop_ratio=0.875, augment__mean=(0.4, 0.5, 0.6))
    return untrained(tmp_path_factory.mktemp("network") / "run", config)


@pytest.fixture(scope="module")
def file(run, tmp_path_factory):
    """Its weights as a timm file with class names."""
    return str(export(run, tmp_path_factory.mktemp("file") / "w.safetensors", layout="timm", which="raw"))


@pytest.fixture
def published(monkeypatch, tmp_path_factory):
    """A file in place of published weights: 1,000 classes, 28 pixels."""
    path = tmp_path_factory.getbasetemp() / "published.safetensors"
    if not path.exists():
        model = create_model(NAME, 1000, 28, **STUDENT)
        variables = jax.jit(model.init)(jax.random.key(5), np.zeros((1, 28, 28, 3), np.float32))
        save_weights(variables, model, path)
    monkeypatch.setattr(hub, "fetch_pretrained", lambda *_, **__: path)  # tests/weights/test_hub.py fetches
    return path


def config_of(weights, **changes):
    return tiny_config(**({"model__weights": str(weights), "model__fusion": "softmax"} | ALONE | changes))


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other)


# --- Each kind of source --------------------------------------------------------------------------------------------------


def test_load_a_run(run):
    network = load_network(run)
    assert (network.name, network.image_size, network.trained_image_size) == (NAME, 28, 28)
    assert (network.mean, network.crop.crop_ratio, network.class_names) == ((0.4, 0.5, 0.6), 0.875, NAMES)
    assert (network.which, network.step, network.finished) == ("raw", 0, False)
    assert network.description == f"{NAME}, raw weights of {run} after step 0" and not network.changes
    assert network.digest() == weights_digest(network.variables) == network.identity().weights
    assert network.identity().image_size == 28 and fusion_of(network.model) == "softmax"
    both = load_networks(run)
    assert list(both) == ["raw", "ema"] and both["ema"].which == "ema"


def test_load_a_file(run, file):
    network = load_network(file, wanted_by(config_of(file), NAMES), image_size=28)
    assert (network.model.num_classes, network.class_names, network.step) == (10, NAMES, None)
    assert (network.mean, network.crop) == ((0.4, 0.5, 0.6), CenterCrop(28, 0.875))  # declared in the file
    assert network.description == f"{NAME}, weights of {file}"
    assert network.digest() == load_network(run).digest()
    with pytest.raises(ValueError, match="`wanted` is required unless `spec` is a workdir"):
        load_network(file)


def test_classes_of_a_file_without_names_are_counted(run, tmp_path):
    network = load_network(run)
    path = save_weights(network.variables, network.model, tmp_path / "unnamed.safetensors")
    classifier = Classifier.from_weights(path, NAME, image_size=28, **STUDENT)
    assert classifier.model.num_classes == 10 and classifier.class_names is None
    [best] = predict([str(CHINA)], config=config_of(path, data__source="folder", data__path="/nowhere", image_size=28))
    assert best[0].label == str(best[0].index)


def test_load_published_weights(published):
    network = load_network("pretrained", wanted_by(config_of("pretrained")), image_size=28)
    assert (network.model.num_classes, network.trained_image_size) == (1000, 224)
    assert (network.mean, network.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert network.class_names == imagenet_class_names()
    assert fusion_of(network.model) == "softmax"  # config.model's, as of a file
    assert network.description == f"{NAME}, published weights"


def test_load_random_weights():
    config = config_of("random", num_classes=10)
    one, other = (load_network("random", wanted_by(config, position=k), image_size=28) for k in range(2))
    assert one.description == f"{NAME}, RANDOM weights" and one.digest() != other.digest()
    with pytest.raises(ConfigError, match=r"set the number of classes, config\.num_classes"):
        load_network("random", wanted_by(config_of("random")))
    with pytest.raises(ConfigError, match=r"set the number of classes"):  # the name is not that of the data
        _configured_network(config_of("random", data__name="cifar10"), "raw", "newest")


def test_model_is_checked_before_weights_are_read(run, tmp_path):
    def check(model):
        raise ConfigError(f"{model.num_classes} classes")

    gone = str(tmp_path / "gone.npz")
    with pytest.raises(ConfigError, match="12 classes"):
        load_network(gone, wanted_by(config_of(gone, num_classes=12)), check=check)
    with pytest.raises(ConfigError, match="10 classes"):
        load_network(run, checkpoint="77", check=check)


# --- The same network in every mode ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 42])
def test_run_is_the_same_network_in_every_mode(run, size, tmp_path):
    config = config_of(run, image_size=size)
    in_place = config_of("", image_size=size)
    networks = [
        load_network(run, image_size=size),
        evaluated_networks(config, None, NAMES, "newest")["raw"],
        evaluated_networks(in_place, run, NAMES, "newest")["raw"],
        _configured_network(config, "raw", "newest"),
        compared_networks(run, [], which="raw", image_size=size)["run"],
    ]
    expected = networks[0]
    for network in networks[1:]:
        assert_equal(network.variables, expected.variables)
        for field in ("model", "image_size", "crop", "mean", "class_names", "description", "resized"):
            assert getattr(network, field) == getattr(expected, field), field
    tokens = 2 + (fixed_image_size(expected.model) // 14) ** 2
    assert expected.variables["params"]["pos_embed"].shape[1] == tokens
    assert expected.resized == ("2x2 to 3x3" if size else "") and expected.crop.size == expected.image_size
    started = load_initial(config_of(run, image_size=size or 28), tmp_path)
    assert_equal(started.variables["params"], expected.variables["params"])
    assert started.description == expected.description and started.digest == expected.digest()
    classifier = Classifier.from_workdir(run, image_size=size)
    assert (classifier.crop, classifier.mean, classifier.class_names) == (expected.crop, expected.mean, NAMES)
    assert (classifier.model, classifier.description) == (expected.model, expected.description)
    assert_equal(classifier.variables, expected.variables)


def test_file_is_the_same_network_in_every_mode(run, file, tmp_path):
    config = config_of(file, image_size=42)
    first = load_network(run, image_size=42)
    networks = [
        evaluated_networks(config, None, NAMES, "newest")["raw"],
        _configured_network(config, "raw", "newest"),
        compared_networks(run, [file], which="raw", image_size=42)["w.safetensors"],
    ]
    for network in networks:
        assert_equal(network.variables, first.variables)
        assert (network.class_names, network.resized) == (NAMES, "2x2 to 3x3")
    numbers = imagenet_wordnet_ids()[:10]
    classifier = Classifier.from_weights(file, NAME, image_size=42, class_names=numbers, **STUDENT)
    assert_equal(classifier.variables, first.variables)
    assert classifier.class_names == numbers  # as given
    assert_equal(load_initial(config, tmp_path).variables["params"], first.variables["params"])


def test_scores_match_the_classifier(run, tmp_path):
    """The top-1 of evaluation equals the classifier's, at the requested size."""
    changes = {"image_size": 42, "augment__mean": (0.4, 0.5, 0.6), "evaluation__crop_ratio": 0.875}
    config = tiny_config(**ALONE, **changes, model__fusion="softmax", data__max_eval_images=12)
    scores = evaluate(config, run, output=tmp_path / "scores.json")["scores"]["raw"]
    source = open_source(config.data, "eval")
    images = [np.repeat(source[i].image[:, :, None], 3, axis=2) for i in range(12)]
    labels = np.array([source[i].label for i in range(12)])
    classifier = Classifier.from_workdir(run, image_size=42, batch_size=12)
    for head, answer in (("fused_softmax", None), ("class", "class")):
        decided = classifier.probabilities(images, head=answer).argmax(-1)
        assert scores[head]["top1"] == pytest.approx(100 * np.mean(decided == labels))


# --- Former differences between modes -------------------------------------------------------------------------------------


def test_run_of_another_model_is_rejected(run):
    config = config_of(run, model__name="deit_tiny_patch16_224", distillation__kind="none")
    for load in (
        lambda: evaluated_networks(config, None, NAMES, "newest"),
        lambda: _configured_network(config, "raw", "newest"),
    ):
        with pytest.raises(
            ConfigError, match=rf"config\.model\.name='deit_tiny_patch16_224', but {run} holds '{NAME}'"
        ):
            load()
    config.teacher.name, config.teacher.weights, config.distillation.kind = "regnety_002", str(run), "hard"
    with pytest.raises(ConfigError, match=rf"config\.teacher\.name='regnety_002', but {run} holds '{NAME}'"):
        load_teacher(config, run.parent / "student")


def test_checkpoint_options_are_rejected_for_files(file):
    for load in (
        lambda: evaluated_networks(config_of(file), None, NAMES, "best"),
        lambda: _configured_network(config_of(file), "raw", "best"),
    ):
        with pytest.raises(CheckpointError, match="--checkpoint=best needs a --workdir"):
            load()
    with pytest.raises(WeightsError, match="does not say that it holds a moving average"):
        _configured_network(config_of(file, image_size=28), "ema", "newest")
    for weights in ("pretrained", "random"):
        with pytest.raises(WeightsError, match=f"^{weights}: there is no moving average of"):
            _configured_network(config_of(weights, num_classes=10), "ema", "newest")


def test_published_weights_on_unnamed_classes_are_rejected(published):
    with pytest.raises(ConfigError, match=r"have 1000 classes without names, the evaluation images 10: set"):
        evaluated_networks(config_of("pretrained", image_size=28), None, NAMES, "newest")
    networks = evaluated_networks(config_of("pretrained", image_size=28, num_classes=1000), None, NAMES, "newest")
    assert networks["raw"].model.num_classes == 1000


def test_published_weights_fit_scanned_blocks(published):
    network = _configured_network(config_of("pretrained", image_size=28, model__scan_blocks=True), "raw", "newest")
    assert "blocks" in network.variables["params"] and len(network.class_names) == 1000


def test_evaluation_warns_of_another_normalisation_and_crop(run, tmp_path, capsys):
    evaluate(config_of("", data__max_eval_images=4), run, output=tmp_path / "scores.json")
    output = " ".join(capsys.readouterr().out.split())
    assert "trained with mean (0.4, 0.5, 0.6), given (0.485, 0.456, 0.406); see config.augment.mean" in output
    assert "its own crop is CenterCrop(size=28, crop_ratio=0.875), given CenterCrop(size=28, crop_ratio=1.0)" in output
    evaluate(None, run, output=tmp_path / "scores.json")
    assert "warning" not in capsys.readouterr().out


def test_prediction_warns_of_what_it_does_not_use(run, capsys):
    _configured_network(config_of(run, augment__mean=(0.1, 0.2, 0.3)), "raw", "newest")
    output = " ".join(capsys.readouterr().out.split())
    assert "config.augment.mean is not used, (0.1, 0.2, 0.3): the network's own is used, (0.4, 0.5, 0.6)" in output
    assert (
        "config.evaluation is not used, CenterCrop(size=28, crop_ratio=1.0): the network's own is used, Cen" in output
    )
    _configured_network(config_of(run, evaluation__crop_ratio=0.875), "raw", "newest")  # as the run and the default
    assert "is not used" not in capsys.readouterr().out


def test_class_names_of_other_data_are_not_used(run, tmp_path, capsys):
    network = load_network(run)
    path = save_weights(network.variables, network.model, tmp_path / "unnamed.safetensors")
    arrays = {"test_images": np.zeros((2, 28, 28), np.uint8), "test_labels": [0, 1], "class_names": ["cat", "dog"]}
    np.savez(tmp_path / "two.npz", **arrays)
    two = {"data__source": "npz", "data__path": str(tmp_path / "two.npz"), "data__eval_split": "test"}
    assert _configured_network(config_of(path, image_size=28, **two), "raw", "newest").class_names is None
    assert "classes are shown by number: config.data has 2 names, the network 10" in " ".join(
        capsys.readouterr().out.split()
    )
    assert _configured_network(config_of(path, image_size=28), "raw", "newest").class_names == NAMES


def test_other_classes_are_rejected_before_fetching(run, monkeypatch):
    monkeypatch.setattr(hub, "fetch_pretrained", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(ConfigError, match=r"deit_tiny_patch16_224:pretrained has 1000 classes, .* has 10: their"):
        compared_networks(run, ["deit_tiny_patch16_224:pretrained"], which="raw")


def test_teacher_is_the_specified_network(tmp_path):
    folder = untrained(tmp_path / "teacher", tiny_teacher_config())
    network = load_network(folder)
    teacher = load_teacher(tiny_config(teacher__weights=str(folder)), tmp_path / "student")
    assert teacher.description == network.description
    assert teacher.networks == (network.identity(),)
    path = export(folder, tmp_path / "teacher.safetensors", layout="timm", which="raw")
    from_file = load_teacher(tiny_config(teacher__weights=str(path)), tmp_path / "student")
    assert from_file.networks == (
        dataclasses.replace(network.identity(), variables=None, step=None, finished=None, image_size=None),
    )
    assert from_file.networks[0].weights == teacher.networks[0].weights


def test_missing_sources(tmp_path):
    with pytest.raises(ConfigError, match="nowhere: no such file or folder"):
        load_network(tmp_path / "nowhere", wanted_by(config_of("nowhere")))
    with pytest.raises(WeightsError, match=r"gone\.pth: there is no such file"):
        load_network(str(tmp_path / "gone.pth"), wanted_by(config_of("gone.pth")))
    with pytest.raises(WeightsError, match="a network comes from a path or a name, not from a dict"):
        Classifier.from_weights({}, NAME)
