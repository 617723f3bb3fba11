"""The examples of docs/extending.md: a source, a loss and a model from outside of the package, in every mode."""

import ast
import json
import os
import shlex
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import deit_jax
from deit_jax.reporting.run_log import read_metrics
from tests.end_to_end.commands import ROOT, TINY, environment, forked, run_here

EXAMPLES = ROOT / "examples/extending"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns a function that runs run.py, with or without copies of the examples on PYTHONPATH."""
    folder = tmp_path_factory.mktemp("plugins")
    for file in ("own_source.py", "own_loss.py", "own_model.py"):
        shutil.copy(EXAMPLES / file, folder)

    def run(*arguments, plugins=True):
        path = list(map(str, (folder, ROOT) if plugins else (ROOT,)))
        variables = environment() | {"PYTHONPATH": os.pathsep.join(path)}
        return forked(_run_with_path, path, *map(str, arguments), **variables)

    run.folder = folder
    return run


def _run_with_path(path, *arguments):
    sys.path[:0] = path  # as Python reads PYTHONPATH when it starts
    run_here(*arguments)


def succeed(done):
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.stem)
def test_an_example_is_short_and_uses_only_public_names(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 40
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("deit_jax"):
            assert node.module == "deit_jax" and {name.name for name in node.names} <= set(deit_jax.__all__)
        elif isinstance(node, ast.Import):
            assert not any(name.name.startswith("deit_jax") for name in node.names)
    assert f"examples/extending/{file.name}" in (ROOT / "docs/extending.md").read_text()


@pytest.mark.long
@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.stem)
def test_the_command_of_an_example_is_accepted(file, run, tmp_path):
    text = ast.get_docstring(ast.parse(file.read_text()))
    arguments = shlex.split(text.partition("run.py ")[2].replace("\\\n", " "))
    arguments = [argument for argument in arguments if not argument.startswith("--workdir=")]  # not for a preview
    succeed(run(*arguments, "--mode=preview", f"--output={tmp_path / 'images.png'}"))


@pytest.mark.long
def test_an_own_source_and_an_own_loss_work_in_every_mode(run, tmp_path):
    workdir = tmp_path / "run"
    fields = (
        "--config.logit_matching.weight=0.25", "--config.distillation.kind=logit_matching", "--config.data.source=shapes",
        "--config.plugins=own_source,own_loss", "--config.log.report=True",
    )  # fmt: skip
    train = (TINY, f"--workdir={workdir}", *fields)
    printed = succeed(run(*train, "--config.train.max_steps=2"))
    for name in ("own_source", "own_loss"):
        assert printed.count(f"plugin {name}, from {run.folder / name}.py\n") == 1
    assert "logit_matching, weight 0.25, normalise True" in printed and "shapes: 6,000 training images" in printed
    assert "resuming after step 2" in succeed(run(*train, "--config.train.max_steps=4", "--config.data.num_workers=1"))
    rows = [row for row in read_metrics(workdir) if "train/loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        expected = 0.75 * row["train/label_loss"] + 0.25 * row["train/distance"]
        np.testing.assert_allclose(row["train/loss"], expected, rtol=1e-5)
    report = (workdir / "report.html").read_text()
    assert "logit_matching.weight" in report and "circle" in report

    results = json.loads((workdir / "results.json").read_text())
    succeed(run("--mode=eval", *train, f"--output={tmp_path / 'eval.json'}"))
    assert json.loads((tmp_path / "eval.json").read_text())["scores"] == results["scores"]

    image = np.zeros((28, 28), np.uint8)
    image[8:20, 8:20] = 255
    Image.fromarray(image).save(tmp_path / "square.png")
    output = tmp_path / "answers.json"
    printed = succeed(run("--mode=predict", f"--workdir={workdir}", f"--output={output}", tmp_path / "square.png"))
    assert "plugin own_loss, from" in printed
    assert {entry["label"] for entry in json.loads(output.read_text())[0]["predictions"]} == {
        "circle",
        "square",
        "cross",
    }
    succeed(run("--mode=export", f"--workdir={workdir}", "--layout=jax", f"--output={tmp_path / 'program'}"))
    assert list((tmp_path / "program").iterdir())
    succeed(run("--mode=analyze", f"--workdir={workdir}", f"--output={tmp_path / 'analysis'}"))
    assert list((tmp_path / "analysis").iterdir())

    missing = run("--mode=predict", f"--workdir={workdir}", tmp_path / "square.png", plugins=False)
    assert missing.returncode == 2
    assert missing.stderr == (
        f"error: plugins of {workdir}/config.json: there is no module 'own_source': install it, or put its folder "
        "on PYTHONPATH\n"
    )


@pytest.mark.long
def test_an_own_model_is_student_and_teacher_in_every_mode(run, tmp_path):
    workdir, weights = tmp_path / "convmixer", tmp_path / "convmixer.safetensors"
    own = ("--config.plugins=own_model", "--config.model.name=convmixer_tiny", "--config.model.overrides={}")
    train = (f"{TINY}:teacher", f"--workdir={workdir}", *own, "--config.model.overrides.width=16")
    succeed(run(*train, "--config.train.max_steps=2"))
    assert "resuming after step 2" in succeed(run(*train, "--config.log.report=True"))
    results = json.loads((workdir / "results.json").read_text())
    succeed(run("--mode=eval", *train, f"--output={tmp_path / 'eval.json'}"))
    assert json.loads((tmp_path / "eval.json").read_text())["scores"] == results["scores"]

    refused = run("--mode=export", f"--workdir={workdir}", f"--output={weights}")
    assert refused.returncode == 2 and refused.stderr == (
        "error: a ConvMixer is written in the layout flax, not 'timm'\n"
    )
    succeed(run("--mode=export", f"--workdir={workdir}", "--layout=flax", f"--output={weights}"))
    succeed(run("--mode=export", f"--workdir={workdir}", "--layout=jax", f"--output={tmp_path / 'program'}"))
    Image.fromarray(np.full((28, 28), 99, np.uint8)).save(tmp_path / "grey.png")
    answers = []
    for source in ((f"--workdir={workdir}",), (f"{TINY}:teacher", *own, f"--config.model.weights={weights}")):
        output = tmp_path / "answers.json"
        extra = ("--config.model.overrides.width=16",) if len(source) > 1 else ()
        succeed(run("--mode=predict", *source, *extra, f"--output={output}", tmp_path / "grey.png"))
        answers.append(json.loads(output.read_text())[0]["predictions"])
    assert [entry["label"] for entry in answers[0]] == [entry["label"] for entry in answers[1]]
    found = [[entry["probability"] for entry in each] for each in answers]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    succeed(run("--mode=analyze", f"--workdir={workdir}", f"--output={tmp_path / 'analysis'}"))

    teacher = ("--config.plugins=own_model", "--config.teacher.name=convmixer_tiny", "--config.teacher.overrides={}")
    rows = []
    for place, extra in ((workdir, ()), (weights, ("--config.teacher.overrides.width=16",))):
        student = tmp_path / f"student_of_{place.name}"
        succeed(run(TINY, f"--workdir={student}", *teacher, *extra, f"--config.teacher.weights={place}"))
        rows.append([row["train/loss"] for row in read_metrics(student) if "train/loss" in row])
    assert len(rows[0]) == 4 and rows[0] == rows[1]  # the same network from both places
