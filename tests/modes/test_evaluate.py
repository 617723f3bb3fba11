import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from deit_jax.cache_folder import shared_cache_folder
from deit_jax.config import MUST_BE_GIVEN, ConfigError, default_config
from deit_jax.data.registry import open_source
from deit_jax.data.sources import DataError
from deit_jax.errors import UserError
from deit_jax.modes.evaluate import evaluate
from deit_jax.modes.export import export
from deit_jax.modes.train import train
from deit_jax.training.checkpoint_folder import CheckpointError
from deit_jax.training.checkpointing import load_variables
from deit_jax.training.program import build_recorded_model
from deit_jax.training.record import read_config
from deit_jax.weights import WeightsError
from tests.tiny import tiny_config


def extra_set(**fields):
    return ConfigDict({"source": "folder", "name": "", "path": "", "split": "validation", "labels": ""} | fields)


def config_with(extra, **changes):
    config = tiny_config(train__max_steps=2, checkpoint__every_steps=1, data__eval_split="test[:80]", **changes)
    config.evaluation.extra = ConfigDict(extra)
    return config


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve images of ten classes as a folder, with names of ImageNet's and a file of labels of ReaL's kind."""
    root = tmp_path_factory.mktemp("photos")
    source = open_source(tiny_config().data, "eval")
    for i in range(12):
        image, _ = source[i]
        path = root / "val" / str(i % 10) / f"ILSVRC2012_val_{i + 1:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (root / "val" / "3" / "notes.txt").touch()
    rng = np.random.default_rng(0)
    lists = [[] if i in (3, 7) else sorted({int(it) for it in rng.integers(0, 10, 1 + i % 4)}) for i in range(12)]
    (root / "real.json").write_text(json.dumps(lists))
    return root, lists


@pytest.fixture(scope="module")
def trained(tmp_path_factory, photos):
    """The workdir of a tiny distilled DeiT trained for two steps, its configuration, and its warnings."""
    root, _ = photos
    np.savez(
        root / "two.npz", test_images=np.zeros((3, 28, 28), np.uint8), test_labels=[0, 1, 0], class_names=["a", "b"]
    )
    (root / "damaged" / "val").mkdir(parents=True)
    for number in range(10):
        (root / "damaged" / "val" / str(number)).mkdir()
        (root / "damaged" / "val" / str(number) / "a.png").write_bytes(b"no image")
    config = config_with(
        {
            "again": extra_set(source="fashion_mnist_10k", split="test[:80]"),
            "real": extra_set(path=str(root), labels=str(root / "real.json")),
            "nowhere": extra_set(path=str(root / "nowhere")),
            "unprepared": extra_set(source="tfds", name="cifar10", path=str(root / "tfds"), split="test"),
            "two": extra_set(source="npz", path=str(root / "two.npz"), split="test"),
            "damaged": extra_set(path=str(root / "damaged")),
        },
        distillation__kind="labels",
        teacher__weights="",
    )
    workdir = tmp_path_factory.mktemp("student")
    warnings: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deit_jax.console.warn", warnings.append)
        train(config, workdir)
    return workdir, config, warnings


def as_trained(**changes):
    return config_with({}, **changes)


def test_a_run_scores_the_available_extra_sets_and_reports_each_missing_one(trained):
    workdir, _, warnings = trained
    results = json.loads((workdir / "results.json").read_text())
    assert set(results["extra"]) == {"again", "real"}
    assert results["extra"]["again"] == {"images": 80, "unreadable": 0, "scores": results["scores"]}
    lines = {line.split(" is skipped: ")[0].rpartition(".")[2]: line for line in warnings if " is skipped: " in line}
    assert len(lines) == sum(" is skipped: " in line for line in warnings) == 4
    assert "nowhere: no such folder" in lines["nowhere"]
    assert "tfds build cifar10" in lines["unprepared"]
    assert "the classes differ from those of the model (new: 'a', 'b'; missing:" in lines["two"]
    assert "cannot be decoded" in lines["damaged"]
    assert results["protocol"]["resize"] == results["protocol"]["crop"] == 28


def test_the_newest_checkpoint_scores_as_the_run_did_at_its_end(trained, capsys):
    workdir, config, _ = trained
    config = config.copy_and_resolve_references()
    del config.evaluation.extra["two"], config.evaluation.extra["damaged"]
    found = evaluate(config, workdir)
    results = json.loads((workdir / "results.json").read_text())
    for name in ("scores", "extra", "protocol"):
        assert found[name] == results[name]
    assert found == json.loads((workdir / "evaluation.json").read_text())
    assert set(found["scores"]["ema"]) == {"class", "distillation", "fused_logits", "fused_softmax"}
    printed = capsys.readouterr().out
    assert "shorter side to 28, centre 28 (bicubic, antialiased); mean 0.485, 0.456, 0.406" in printed
    assert "real, 10 images" in printed and "again, 80 images" in printed
    assert printed.count("config.evaluation.extra.real: skipped in ") == printed.count("1 file: 1 .txt\n") == 1


def test_without_a_configuration_the_run_is_evaluated_as_it_was(trained, tmp_path):
    workdir, _, _ = trained
    run = shutil.copytree(workdir, tmp_path / "run")
    record = json.loads((run / "config.json").read_text())
    record["config"]["evaluation"]["extra"] = {}  # two of the sets cannot be evaluated
    (run / "config.json").write_text(json.dumps(record))
    found, results = evaluate(None, run), json.loads((run / "results.json").read_text())
    assert (found["scores"], found["protocol"]) == (results["scores"], results["protocol"])
    assert json.loads((run / "evaluation.json").read_text()) == found
    with pytest.raises(ConfigError, match="nothing to evaluate: give the --workdir"):
        evaluate(None, None)
    with pytest.raises(ConfigError, match="is not the --workdir of a training run"):
        evaluate(None, tmp_path)


def test_scores_on_real_labels_match_a_direct_count(trained, photos):
    workdir, config, _ = trained
    root, lists = photos
    found = json.loads((workdir / "results.json").read_text())["extra"]["real"]
    assert found["images"] == 10 == sum(map(bool, lists))
    assert set(found["scores"]["raw"]["class"]) == {"top1", "top5"}
    images = [
        np.asarray(Image.open(next(root.glob(f"val/*/*{i + 1:08d}.png"))).convert("RGB")) / 255 for i in range(12)
    ]
    images = (np.stack(images) - np.array(config.augment.mean)) / np.array(config.augment.std)
    model = build_recorded_model(read_config(workdir))
    output = jax.jit(model.apply)(load_variables(workdir)[0], images.astype(np.float32))
    for head, logits in (("class", output.class_logits), ("distillation", output.distillation_logits)):
        ranked = np.argsort(-np.asarray(logits), axis=1, kind="stable")
        for name, first in (("top1", 1), ("top5", 5)):
            hits = [bool(set(ranked[i, :first].tolist()) & set(labels)) for i, labels in enumerate(lists) if labels]
            assert found["scores"]["raw"][head][name] == pytest.approx(100 * np.mean(hits))


@pytest.mark.parametrize(("name", "message"), [("two", "new: 'a', 'b'"), ("damaged", "cannot be decoded")])
def test_a_faulty_extra_set_is_an_error_in_mode_eval(trained, name, message):
    workdir, config, _ = trained
    with pytest.raises(DataError, match=rf"config\.evaluation\.extra\.{name}: .*{message}"):
        evaluate(config_with({name: config.evaluation.extra[name]}), workdir)


def test_compiled_programs_are_shared_next_to_the_evaluated_workdir(trained, monkeypatch):
    def share(cache, shared):
        raise UserError(f"{cache} {shared}")

    workdir, _, _ = trained
    monkeypatch.setattr("deit_jax.modes.evaluate.share_compiled_programs", share)
    with pytest.raises(UserError) as error:
        evaluate(as_trained(), workdir)
    assert str(error.value) == f"auto {shared_cache_folder(workdir)}"


def test_another_checkpoint_can_be_selected(trained, tmp_path):
    workdir, _, _ = trained
    first = evaluate(as_trained(), workdir, checkpoint="1", output=tmp_path / "deep" / "first.json")
    best = evaluate(as_trained(), workdir, checkpoint="best", output=tmp_path / "best.json")
    assert (first["step"], best["step"]) == (1, 2)
    assert first["scores"]["raw"]["class"]["loss"] != best["scores"]["raw"]["class"]["loss"]
    assert json.loads((tmp_path / "deep" / "first.json").read_text()) == first
    with pytest.raises(CheckpointError, match=r"of step 7 here \(there are: 1, 2\)"):
        evaluate(as_trained(), workdir, checkpoint="7")
    path = export(workdir, tmp_path / "first.safetensors", layout="timm", which="raw", checkpoint="1")
    exported = evaluate(as_trained(model__weights=str(path)), None)
    assert exported["scores"]["raw"] == first["scores"]["raw"]


def test_a_file_is_evaluated_without_a_workdir_and_without_a_teacher(trained, tmp_path, capsys):
    workdir, _, _ = trained
    path = str(export(workdir, tmp_path / "ours.safetensors", layout="timm", which="ema"))
    found = evaluate(as_trained(model__weights=path, teacher__weights=""), None, output=tmp_path / "file.json")
    assert found["scores"]["raw"] == evaluate(as_trained(), workdir)["scores"]["ema"]
    assert found["step"] is None and json.loads((tmp_path / "file.json").read_text())["weights"] == f"weights of {path}"
    assert f"\nweights of {path}\n" in capsys.readouterr().out
    trained_with = as_trained(features__pairs=("cls_1:s1",), features__mse=1.0, unlabelled__source="fashion_mnist_10k")
    assert evaluate(trained_with, workdir)["scores"] == evaluate(as_trained(), workdir)["scores"]
    # A workdir with checkpoints is what is meant; one without takes the weights, and the file.
    assert evaluate(as_trained(model__weights=path), workdir)["step"] == 2
    assert evaluate(as_trained(model__weights=str(workdir)), None)["step"] == 2
    evaluate(as_trained(model__weights=path), tmp_path / "new")
    assert (tmp_path / "new" / "evaluation.json").exists()


def test_another_image_size_is_reported_and_resizes_the_position_embedding(trained, tmp_path, capsys):
    workdir, _, _ = trained
    larger = as_trained(image_size=42)
    found = evaluate(larger, workdir, output=tmp_path / "a.json")
    assert (found["image_size"], found["trained_image_size"], found["protocol"]["crop"]) == (42, 28, 42)
    assert "trained at 28 pixels, evaluated at 42, position embeddings resized (bicubic)" in capsys.readouterr().out
    assert found["scores"] != evaluate(as_trained(), workdir)["scores"]
    path = export(workdir, tmp_path / "raw.safetensors", layout="timm", which="raw")
    larger.model.weights = str(path)
    assert evaluate(larger, None)["scores"]["raw"] == found["scores"]["raw"]


def test_figures_of_other_classes_are_not_printed(trained, tmp_path, capsys):
    workdir, _, _ = trained
    for num_classes in (10, 1000):
        config = as_trained(num_classes=num_classes)
        with config.unlocked():
            config.published["published: DeiT-Ti, ImageNet"] = 72.2
        evaluate(config, workdir, output=tmp_path / "scores.json")
        assert ("published: DeiT-Ti, ImageNet" in capsys.readouterr().out) == (num_classes == 10)


def test_invalid_arguments_are_refused(trained, tmp_path):
    workdir, _, _ = trained
    with pytest.raises(ConfigError, match="nothing to evaluate: give the --workdir"):
        evaluate(as_trained(), None)
    with pytest.raises(ConfigError, match="is not the --workdir of a training run"):
        evaluate(as_trained(), tmp_path)
    with pytest.raises(ConfigError, match=r"but .* holds 'deit_tiny_distilled_patch16_224'"):
        evaluate(as_trained(model__name="deit_tiny_patch16_224"), workdir)
    with pytest.raises(WeightsError, match="there is no such file"):
        evaluate(as_trained(model__weights=str(tmp_path / "gone.pth")), None)
    with pytest.raises(CheckpointError, match="needs a --workdir"):
        evaluate(as_trained(model__weights=str(tmp_path / "gone.pth")), None, checkpoint="best")
    with pytest.raises(ConfigError, match="have 10 classes, the model 4"):
        path = tmp_path / "four.safetensors"
        make_weights(path, num_classes=4)
        evaluate(as_trained(model__weights=str(path), num_classes=4), None)


def make_weights(path, num_classes):
    from deit_jax.models import create_model
    from deit_jax.weights import save_weights
    from tests.tiny import STUDENT

    model = create_model("deit_tiny_distilled_patch16_224", num_classes, 28, **STUDENT)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 3)))
    save_weights(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), model, path)


def test_a_config_without_its_required_weights_is_refused():
    config = default_config()
    config.model.weights = MUST_BE_GIVEN
    with pytest.raises(ConfigError, match="nothing to evaluate: give the --workdir of a training run"):
        evaluate(config, None)
