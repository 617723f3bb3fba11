"""--mode=export --push: the model card of a run, and what is uploaded, with a server on loopback."""

import ast
import json
import os
import re
import shlex
import shutil

import pytest
import yaml

from deit_jax.config import ConfigError, default_config
from deit_jax.config_file import apply, split
from deit_jax.modes.evaluate import evaluate
from deit_jax.modes.export import Push, export
from deit_jax.modes.model_card import own_flags
from deit_jax.modes.teacher import load_teacher
from deit_jax.network import Network, load_network
from deit_jax.network_sources import wanted_by
from tests.hub_server import TOKEN, hub_server
from tests.tiny import tiny_config


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server(monkeypatch, tmp_path / "home") as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.mark.parametrize("layout", ["timm", "hf"])
def test_the_card_is_filled_in_from_the_run(hub, trained_student, tmp_path, layout):
    run = shutil.copytree(trained_student, tmp_path / "run")
    home = os.path.expanduser("~")
    words = (
        f"--config.data.path={home}/images --config.teacher.weights=/srv/nets/a,/srv/nets/b '--workdir=/data/my runs/x'"
    )
    environment = {"command": f"python run.py {words}", "jax": "0.12", "devices": "1 x cpu"}
    (run / "environment.json").write_text(json.dumps(environment))
    export(run, tmp_path / "out", layout=layout, which="raw", push=Push("oak/leaf", licence="apache-2.0"))
    files = hub.repositories["oak/leaf"].branches["main"]
    assert {"README.md", "model.safetensors", "config.json"} <= files.keys()
    card = files["README.md"].decode()
    assert card == (tmp_path / "out/README.md").read_text()
    metadata = yaml.safe_load(card.split("---\n")[1])
    library = {"timm": "timm", "hf": "transformers"}[layout]
    assert (metadata["license"], metadata["library_name"]) == ("apache-2.0", library)
    results = json.loads((trained_student / "results.json").read_text())
    score = results["scores"]["raw"]["fused_logits"]
    accuracy = metadata["model-index"][0]["results"][0]["metrics"][0]
    assert (accuracy["type"], accuracy["value"]) == ("accuracy", round(score["top1"], 4))
    assert f"| both, mean of logits | {score['top1']:.2f} |" in card and "| distillation head |" in card
    teacher = results["teacher"]["class"]["top1"]
    for text in (
        "# leaf\n",
        f"On {results['eval_images']:,} evaluation images",
        "Protocol deit: shorter side to 28",
        "training images, digest `",
        "optimizer",
        "distillation.kind = ",
        f"Its top-1 on the same images: {teacher:.2f} %",
        "The weights: apache-2.0.",
        "## Not verified",
        f"The uploaded file was not loaded by {library} for this card.",
        "## Initial weights\n\nRandom.",
        "python run.py --config.data.path=~/images --config.teacher.weights=.../a,.../b '--workdir=.../x'\n```\n",
        "\n\njax 0.12; 1 x cpu.",
    ):
        assert text in card
    assert str(tmp_path.parent.parent) not in card and "/srv" not in card  # no path of this machine
    predicts = "print(model.config.id2label[model(**inputs).logits.argmax().item()])"
    assert (predicts in card) == (layout == "hf")
    for code in re.findall("```python\n(.*?)```", card, re.S):
        ast.parse(code)


@pytest.mark.parametrize(
    ("weights", "digest", "shown"),
    [
        ("pretrained", "12ab", "The published weights of deit_tiny_distilled_patch16_224 (digest `12ab`)."),
        ("hf:oak/tree", "12ab", "hf:oak/tree (digest `12ab`)."),
        ("/srv/nets/model.safetensors", "", "`model.safetensors`."),
    ],
)
def test_the_card_names_the_initial_weights(hub, trained_student, tmp_path, weights, digest, shown):
    run = shutil.copytree(trained_student, tmp_path / "run")
    record = json.loads((run / "config.json").read_text())
    record["config"]["model"]["weights"] = weights
    if digest:
        record["resolved"]["initial"] = {"weights": digest}
    (run / "config.json").write_text(json.dumps(record))
    export(run, tmp_path / "out", layout="flax", which="raw", push=Push("oak/leaf"))
    assert f"## Initial weights\n\n{shown}\n" in (tmp_path / "out/README.md").read_text()


def test_weights_of_another_step_have_no_scores(hub, trained_student, tmp_path):
    run = shutil.copytree(trained_student, tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"step": 99}))
    export(run, tmp_path / "out", layout="timm", which="ema", push=Push("oak/leaf", private=True, revision="early"))
    card = hub.repositories["oak/leaf"].branches["early"]["README.md"].decode()
    assert hub.repositories["oak/leaf"].private and "model-index" not in card
    assert (
        "These weights (after step 1) were not evaluated" in card
        and "The weights are the moving average after step 1" in card
    )
    assert "No licence is stated for these weights." in card and "license:" not in card


@pytest.mark.parametrize("images", [90, 40])
def test_an_evaluation_counts_only_on_the_images_of_the_run(hub, trained_student, tmp_path, images):
    run = shutil.copytree(trained_student, tmp_path / "run")
    (run / "results.json").unlink()
    evaluate(tiny_config(data__max_eval_images=images), run)
    export(run, tmp_path / "out", layout="flax", which="raw", push=Push("oak/leaf"))
    card = hub.repositories["oak/leaf"].branches["main"]["README.md"].decode()
    assert ("model-index" in card) == ("On 90 evaluation images" in card) == (images == 90)
    assert ("were not evaluated in the run's folder" in card) == (images == 40)


def test_the_printed_flags_restore_what_a_mode_does_not_read_from_the_weights():
    given = tiny_config(model__fusion="class", evaluation__crop_ratio=0.8, augment__mean=(0.4, 0.5, 0.6))
    flags = own_flags("oak/leaf", Network(given.model.name, None, {}, "", 28), given)
    config = default_config()
    apply(config, split(shlex.split(flags))[1])
    assert (config.model.weights, config.model.name, config.image_size) == ("hf:oak/leaf", given.model.name, 28)
    assert config.model.overrides == given.model.overrides
    assert (config.model.fusion, config.evaluation.crop_ratio) == ("class", 0.8)
    assert (tuple(config.augment.mean), config.evaluation.protocol) == ((0.4, 0.5, 0.6), "deit")
    assert "std" not in flags and "protocol" not in flags  # the defaults


def test_a_pushed_teacher_is_read_by_its_name(hub, trained_teacher, tmp_path):
    export(trained_teacher, tmp_path / "out", layout="flax", which="raw", push=Push("oak/teacher"))
    teacher = load_teacher(tiny_config(teacher__weights="hf:oak/teacher"), tmp_path)
    expected = load_teacher(tiny_config(teacher__weights=str(tmp_path / "out")), tmp_path)
    assert "weights of hf:oak/teacher (commit " in teacher.description
    assert [each.weights for each in teacher.networks] == [each.weights for each in expected.networks]


def test_initial_weights_by_their_name(hub, trained_student, tmp_path):
    export(trained_student, tmp_path / "out", layout="hf", which="raw", push=Push("oak/student"))
    network = load_network("hf:oak/student", wanted_by(tiny_config()))
    assert network.class_names[9] == "Ankle boot" and network.model.num_classes == 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"push": Push("leaf")}, "--push=leaf: give OWNER/NAME"),
        ({"push": Push("oak/leaf"), "layout": "onnx"}, "--push is for --layout=timm or hf or flax"),
        ({"push": Push("oak/leaf"), "output": "a.safetensors"}, "--push uploads a folder"),
    ],
)
def test_refused_before_anything_is_written(tmp_path, fields, message):
    given = {"layout": "timm", "output": "out"} | fields
    with pytest.raises(ConfigError, match=message):
        export(tmp_path, tmp_path / given["output"], layout=given["layout"], which="raw", push=given["push"])
    assert not (tmp_path / given["output"]).exists()
