import csv
import json

import pytest

from deit_jax.config import ConfigError
from deit_jax.inference.classifier import Classifier, Prediction
from deit_jax.modes.export import export
from deit_jax.modes.predict import _write, predict
from tests.inference.conftest import CHINA, FLOWER
from tests.modes.workdirs import untrained
from tests.tiny import tiny_config

FILES = [str(CHINA), str(FLOWER)]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("run"), tiny_config())


def test_predictions_of_a_workdir_are_printed_and_written(workdir, tmp_path, capsys):
    wanted = Classifier.from_workdir(workdir)(FILES)
    assert predict(FILES, workdir=workdir, output=tmp_path / "made" / "found.json") == wanted
    printed = capsys.readouterr().out
    assert wanted[0][0].label in printed and f"{wanted[1][4].probability:.4f}" in printed
    written = json.loads((tmp_path / "made" / "found.json").read_text())
    assert [entry["file"] for entry in written] == FILES
    assert written[1]["predictions"] == [one._asdict() for one in wanted[1]]

    predict(FILES, workdir=workdir, output=tmp_path / "found.csv")
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    assert len(rows) == 10 and rows[5]["file"] == FILES[1] and rows[5]["rank"] == "1"
    assert rows[5]["label"] == wanted[1][0].label and float(rows[5]["probability"]) == wanted[1][0].probability


def test_untrusted_names_are_escaped_in_csv_and_exact_in_json(tmp_path):
    files, names = ["=1+1.png", "caf\udce9.png"], ["@SUM(A1)", 'a "b", c\n\x1b']
    found = [[Prediction(name, 0, 0.5)] for name in names]
    _write(tmp_path / "found.csv", files, found)
    with (tmp_path / "found.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["'=1+1.png", r"caf\xe9.png"]
    assert [row["label"] for row in rows] == ["'@SUM(A1)", r'a "b", c\n\x1b']
    _write(tmp_path / "found.json", files, found)
    written = json.loads((tmp_path / "found.json").read_text())
    assert [entry["file"] for entry in written] == files
    assert [entry["predictions"][0]["label"] for entry in written] == names


def test_a_weights_file_takes_names_and_crop_from_the_configuration(workdir, tmp_path):
    path = export(workdir, tmp_path / "weights.safetensors", layout="timm", which="raw")
    found = predict(FILES, config=tiny_config(model__weights=str(path)))
    for one, other in zip(found, predict(FILES, workdir=workdir), strict=True):
        assert [it.label for it in one] == [it.label for it in other]
        assert [it.probability for it in one] == pytest.approx([it.probability for it in other], abs=1e-5)


def test_invalid_arguments_are_refused(workdir, tmp_path):
    with pytest.raises(ConfigError, match="nothing to predict with: give the --workdir"):
        predict(FILES, config=tiny_config())
    config = tiny_config(model__weights="random", num_classes=10, evaluation__crop_ratio=0.0)
    with pytest.raises(ConfigError, match=r"config\.evaluation\.crop_ratio=0\.0"):
        predict(FILES, config=config)
    with pytest.raises(ConfigError, match=r"predictions are written as \.json or \.csv"):
        predict(FILES, workdir=workdir, output=tmp_path / "found.txt")
