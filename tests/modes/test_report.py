import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from deit_jax.config import ConfigError
from deit_jax.errors import UserError
from deit_jax.modes import report as mode
from deit_jax.modes.report import report
from deit_jax.modes.train import train
from tests.html_pages import Page
from tests.reporting.test_run_log import shown
from tests.tiny import tiny_config

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
SECTIONS = [
    "results", "curves", "configuration", "training-images", "confusion", "predictions", "attention", "throughput", "environment",
]  # fmt: skip
# Ten, so that the programs are those of other tests.
NAMES = ("<script>alert('cat')</script>", 'a "dog" & more', *(f"class {k}" for k in range(8)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An .npz file of random images, with class names that must be escaped."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "set.npz"
    np.savez(
        path, class_names=np.array(NAMES),
        **{f"{part}_images": rng.integers(0, 255, (n, 28, 28, 3), np.uint8) for part, n in (("train", 64), ("test", 45))},
        **{f"{part}_labels": rng.integers(0, 10, n) for part, n in (("train", 64), ("test", 45))},
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """The workdir of a finished run that wrote its report."""
    workdir = tmp_path_factory.mktemp("run") / "work"
    train(with_report(data), workdir)
    return workdir


def with_report(data, **changes):
    config = tiny_config(
        data__source="npz",
        data__path=str(data),
        data__eval_split="test",
        log__report=True,
        log__tensorboard=True,
        **changes,
    )
    with config.unlocked():
        config.published["a published figure"] = 12.34
    return config


def read(path):
    return Page(path.read_text())


def test_a_finished_run_has_a_complete_report(finished):
    page = read(finished / "report.html")
    assert page.sections() == SECTIONS and page.needs_nothing_else()
    assert "Left out" not in page.text.replace("Left out: the run was too short", "")
    for fact in (
        "deit_tiny_distilled_patch16_224", "distillation head", "a published figure", "12.34", "teacher regnety_002",
        "augment.max_group_size", "log.report", "of 45 right", "all 45 evaluation images", "distillation token",
        "images per second", "jax",
    ):  # fmt: skip
        assert fact in page.text, fact
    assert all(name in page.text for name in NAMES)
    alternatives = [attributes["alt"] for attributes in page.all("img")]
    assert sum("augmented" in text for text in alternatives) == 16
    assert sum("attention of the class token" in text for text in alternatives) == 8
    assert sum("attention of the distillation token" in text for text in alternatives) == 8
    assert len(page.all("td")) > 9


def test_its_pictures_are_in_tensorboard_and_training_images_are_at_step_0(finished):
    pictures = [(tag, step) for tag, step, kind in shown(finished / "tensorboard") if kind == "image"]
    assert pictures[0] == ("images/training", 0)
    assert {tag for tag, step in pictures if step == 4} == {
        f"images/{name}" for name in ("confusion", "wrong", "right", "attention")
    }


def test_the_confusion_matrix_agrees_with_the_results(finished):
    counts = [
        int(c) for c in re.findall(r'<td class="[a-z ]*" style="[^"]*">(\d+)<', (finished / "report.html").read_text())
    ]
    matrix = np.array(counts).reshape(10, 10)
    results = json.loads((finished / "results.json").read_text())
    assert matrix.sum() == 45
    assert 100 * np.trace(matrix) / 45 == pytest.approx(results["scores"]["raw"]["fused_logits"]["top1"], abs=1e-3)


def test_it_is_rewritten_by_a_start_that_has_trained(finished, data, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished, workdir)
    assert "4 steps, 2 epochs" in read(workdir / "report.html").text
    written = {name: (workdir / name).stat().st_mtime_ns for name in ("report.html", "environment.json")}
    train(with_report(data), workdir)
    assert {name: (workdir / name).stat().st_mtime_ns for name in written} == written
    train(with_report(data, train__max_steps=5), workdir)
    assert "5 steps, 2.5 epochs" in read(workdir / "report.html").text
    assert (workdir / "environment.json").stat().st_mtime_ns > written["environment.json"]


def test_damaged_results_and_environments_are_left_out(finished, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished, workdir)
    for content in ("5", "[1]", '{"step": 4}'):
        for name in ("results.json", "environment.json"):
            (workdir / name).write_text(content)
        page = read(report(workdir, output=tmp_path / "page.html"))
        assert "or results.json is damaged" in page.text


def test_it_can_be_rebuilt_and_leaves_out_sections_whose_data_are_gone(finished, data, tmp_path):
    path = report(finished, which="ema", output=tmp_path / "deep" / "page.html")
    assert "ema weights after step 4" in read(path).text
    hidden = data.rename(data.with_suffix(".gone"))
    try:
        page = read(report(finished, output=tmp_path / "page.html"))
    finally:
        hidden.rename(data)
    assert page.sections() == SECTIONS and page.needs_nothing_else()
    assert page.text.count("set.npz: no such file") == 4
    assert "a published figure" in page.text and not page.all("img")


def test_the_training_images_use_the_recorded_mixing_groups(finished, tmp_path, monkeypatch):
    def unreadable(config, rows, mixing=None, unlabelled=None):
        raise UserError(f"groups of {mixing}")

    workdir = tmp_path / "copy"
    shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns("tensorboard"))
    record = json.loads((workdir / "config.json").read_text())
    record["resolved"] |= {"group_size": 2, "groups_per_block": 8}
    record["config"]["data"]["path"] = str(tmp_path / "gone.npz")
    (workdir / "config.json").write_text(json.dumps(record))
    monkeypatch.setattr(mode, "first_images", unreadable)
    assert "groups of (2, 8)" in read(report(workdir)).text


def test_an_unfinished_convnet_run_has_a_report_without_attention(trained_teacher, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(trained_teacher, workdir)
    (workdir / "results.json").unlink()
    page = read(report(workdir))
    assert page.sections() == [name for name in SECTIONS if name != "attention"]
    assert "the run is not finished" in page.text and "regnety_002" in page.text
    assert "not recorded in its folder" in page.text  # log.report is False


def test_a_failing_report_does_not_fail_the_run(finished, tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise RuntimeError("disk full\nnow")

    workdir = tmp_path / "copy"
    shutil.copytree(finished, workdir)
    (workdir / "report.html").unlink()
    monkeypatch.setattr(mode, "first_images", fail)
    mode.report_of_finished_run(workdir)
    printed = capsys.readouterr().out
    assert "warning: " in printed and "report.html is not written (disk full)" in printed
    assert not (workdir / "report.html").exists()


@pytest.mark.parametrize("field", [{"evaluation__crop_ratio": 5.0}, {"evaluation__batch_size": 0}])
def test_an_invalid_configuration_is_refused(trained_teacher, tmp_path, field):
    with pytest.raises(ConfigError, match=f"config.{next(iter(field)).replace('__', '.')}="):
        report(trained_teacher, config=tiny_config(**field), output=tmp_path / "page.html")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not the --workdir of a training run"):
        report(tmp_path)


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_opens_it_without_an_error_or_a_sideways_scroll(finished, tmp_path, width):
    # The copy records its sizes, the pictures that were not drawn, and what it loaded.
    script = """<script>addEventListener("load", () => { document.body.dataset.result = JSON.stringify([
      document.documentElement.scrollWidth, innerWidth, [...document.images].filter(i => !i.naturalWidth).length,
      performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:"))]); });</script>"""
    copy = tmp_path / "page.html"
    copy.write_text((finished / "report.html").read_text().replace("</body>", script + "</body>"))
    # Headless windows are at least 500 pixels wide: the page is put into a frame of that width.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe><script>addEventListener("load", () => '
        "{ document.body.dataset.result = frames[0].document.body.dataset.result; });</script>"
    )
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path}/profile", "--allow-file-access-from-files", "--enable-logging=stderr", "--v=0",
            f"--window-size={width + 100},1000", "--dump-dom", f"file://{frame}",
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    found = Page(done.stdout.replace("<!DOCTYPE html>", ""))
    scroll_width, inner_width, broken, loaded = json.loads(found.all("body")[0]["data-result"])
    assert inner_width == width and scroll_width <= width
    assert broken == 0 and loaded == []


def test_the_teachers_row_says_how_many_labels_it_saw_as_on_the_console(finished, tmp_path):
    """The record of a run under the embedded teacher, with the rest of another run."""
    run = shutil.copytree(finished, tmp_path / "run")
    record = json.loads((run / "config.json").read_text())
    record["config"]["teacher"]["weights"] = "embedded"
    (run / "config.json").write_text(json.dumps(record))
    page = read(report(run, output=tmp_path / "page.html"))
    assert "teacher regnety_002, from 60,000 labelled images" in page.text
