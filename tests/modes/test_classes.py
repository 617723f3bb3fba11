"""Classes of images, networks and teachers are matched by name."""

import json
import shutil

import jax
import numpy as np
import pytest

from deit_jax.config import ConfigError
from deit_jax.data.registry import open_source
from deit_jax.data.sources import DataError
from deit_jax.inference.classifier import Classifier
from deit_jax.models.ensemble import Ensemble
from deit_jax.modes.analyze import analyze
from deit_jax.modes.compared import compared_networks
from deit_jax.modes.evaluate import evaluate
from deit_jax.modes.export import export
from deit_jax.modes.report import report
from deit_jax.modes.teacher import load_teacher
from tests.tiny import tiny_config

SOURCE = open_source(tiny_config().data, "eval")
NAMES = SOURCE.class_names
SHUFFLED = tuple(np.random.default_rng(0).permutation(NAMES).tolist())


def arrays(path, names, spelled=str, rows=80):
    """Writes a .npz file of embedded images of these classes, in this order; `spelled` changes the names."""
    chosen = [SOURCE[i] for i in range(rows) if NAMES[SOURCE[i].label] in names]
    images = np.stack([example.image for example in chosen])
    labels = np.array([names.index(NAMES[example.label]) for example in chosen])
    parts = {
        f"{part}_{what}": it for part in ("train", "test") for what, it in (("images", images), ("labels", labels))
    }
    np.savez(path, class_names=[spelled(name) for name in names], **parts)
    return {"data__source": "npz", "data__path": str(path), "data__eval_split": "test"}


def scores_of(workdir, tmp_path, **changes):
    found = evaluate(tiny_config(**changes), workdir, output=tmp_path / "found.json")
    return found["scores"]


@pytest.mark.parametrize("names", [NAMES[3:6], tuple(reversed(NAMES)), NAMES[7:8] + NAMES[1:2]])
def test_evaluation_on_a_subset_of_the_classes_matches_labels_by_name(trained_student, tmp_path, names, capsys):
    known = arrays(tmp_path / "known.npz", NAMES)  # the same images, in the order that the run knows
    keep = [i for i in range(80) if NAMES[SOURCE[i].label] in names]
    with np.load(tmp_path / "known.npz") as file:
        content = dict(file)
    content |= {name: content[name][keep] for name in ("test_images", "test_labels")}
    np.savez(tmp_path / "known.npz", **content)
    other = arrays(tmp_path / "other.npz", names)
    assert scores_of(trained_student, tmp_path, **other) == scores_of(trained_student, tmp_path, **known)
    assert ("the evaluation images are of" in capsys.readouterr().out) == (len(names) < 10)


def test_numeric_names_are_positions_and_other_names_are_refused(trained_student, tmp_path):
    known = scores_of(trained_student, tmp_path, **arrays(tmp_path / "a.npz", NAMES))
    numbered = arrays(tmp_path / "b.npz", NAMES, lambda name: NAMES.index(name))
    assert scores_of(trained_student, tmp_path, **numbered) == known
    renamed = arrays(tmp_path / "c.npz", NAMES, lambda name: name.replace("Bag", "Purse"))
    with pytest.raises(DataError, match=r"differ from those of .* \(new: 'Purse'; missing: 'Bag'\)"):
        scores_of(trained_student, tmp_path, **renamed)
    with pytest.raises(DataError, match="new: 'Purse'"):
        analyze(trained_student, config=tiny_config(**renamed), output=tmp_path / "analysis")
    assert not (tmp_path / "analysis").exists()


def test_an_exported_file_contains_its_class_names(trained_student, tmp_path):
    file = export(trained_student, tmp_path / "w.safetensors", layout="timm", which="raw")
    folder = export(trained_student, tmp_path / "hf", layout="hf", which="raw")
    known = scores_of(trained_student, tmp_path, **arrays(tmp_path / "a.npz", NAMES))["raw"]
    for weights in (file, folder.parent):
        shuffled = arrays(tmp_path / "b.npz", SHUFFLED) | {"model__weights": str(weights)}
        assert scores_of(None, tmp_path, **shuffled)["raw"] == known
        with pytest.raises(DataError, match="missing: 'Bag'"):
            scores_of(None, tmp_path, **arrays(tmp_path / "c.npz", NAMES, lambda name: name.replace("Bag", "Purse")),
                      model__weights=str(weights))  # fmt: skip
    classifier = Classifier.from_weights(
        file, "deit_tiny_distilled_patch16_224", image_size=28, **tiny_config().model.overrides
    )
    assert classifier.class_names == NAMES
    assert Classifier.from_workdir(trained_student).class_names == NAMES


def test_a_teacher_teaches_the_students_classes_by_name(trained_teacher, tmp_path):
    images = np.random.default_rng(0).normal(size=(4, 28, 28, 3)).astype(np.float32)

    def answers(**changes):
        teacher = load_teacher(tiny_config(teacher__weights=str(trained_teacher), **changes), tmp_path)
        return teacher, np.asarray(jax.jit(teacher.model.apply)(teacher.variables, images).logits)

    plain, expected = answers(**arrays(tmp_path / "a.npz", NAMES))
    shuffled, found = answers(**arrays(tmp_path / "b.npz", SHUFFLED))
    assert not isinstance(plain.model, Ensemble) and "classes matched by name" in shuffled.description
    np.testing.assert_allclose(found, expected[:, [NAMES.index(name) for name in SHUFFLED]], rtol=1e-5)

    renamed = arrays(tmp_path / "c.npz", NAMES, str.upper)
    with pytest.raises(
        ConfigError, match=r"has other classes than the student .*or map the classes with config\.teacher\.classes"
    ):
        answers(**renamed)
    _, found = answers(**renamed, teacher__classes=tuple(range(10)))  # as the user says
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_networks_of_other_classes_are_not_compared(trained_student, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(trained_student, other)
    record = json.loads((other / "config.json").read_text())
    record["resolved"]["class_names"] = list(SHUFFLED)
    (other / "config.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="the same names in another order, class 0 is"):
        compared_networks(trained_student, [str(other)], which="raw")


def test_report_needs_a_trained_step(trained_student, tmp_path):
    shutil.copy(trained_student / "config.json", tmp_path / "config.json")
    with pytest.raises(ConfigError, match="no step has been trained here yet"):
        report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
