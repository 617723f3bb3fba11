import numpy as np

from deit_jax.reporting import html
from deit_jax.reporting import report_sections as report
from tests.html_pages import Page

NASTY = "<b>\"cat\" & 'dog'</b><script>alert(1)</script>"


def of(*sections):
    return Page(html.page(NASTY, html.facts({NASTY: NASTY}), sections))


def test_all_texts_are_escaped():
    image = np.zeros((8, 8, 3), np.uint8)
    names = [NASTY, "plain"]
    attention = np.full((1, 2, 3, 2, 2, 2), 0.1, np.float32), np.full((1, 2, 2, 2), 0.1, np.float32)
    page = of(
        report.results([(NASTY, 1.0, None, None)], {NASTY: [(NASTY, 2.0, 3.0, 4.0)]}, title=NASTY, notes=[NASTY]),
        report.configuration({"data": {"path": NASTY}}, {"data": {"path": ""}}),
        report.training_images(image[None], [NASTY]),
        report.confusion(np.eye(2, dtype=np.int64), names, NASTY),
        report.confusion(np.eye(40, dtype=np.int64), [NASTY] * 40, NASTY),
        report.predictions({"Wrong": [(image, NASTY, [(NASTY, 0.5)])]}, NASTY),
        report.attention([NASTY], image[None], *attention),
        report.environment({NASTY: NASTY}, {"command": NASTY}),
        report.left_out("nothing", NASTY, NASTY),
    )
    assert page.needs_nothing_else() and not page.all("b")
    assert page.text.count(NASTY) > 20
    assert any(NASTY in attributes["alt"] for attributes in page.all("img"))
    assert all(attributes["alt"] for attributes in page.all("img"))


def test_control_characters_are_shown_and_the_page_is_utf8():
    page = of(report.left_out("nothing", "a\x1b[31m\n", "b\u202e caf\udce9"))
    assert r"a\x1b[31m\n" in page.text and r"b\u202e caf\xe9" in page.text
    section = report.confusion(np.eye(2, dtype=np.int64), ["花", "b"], "all", numbered_in_the_log=True)
    assert "call these by their number" in Page(section.html).text and "花" in section.html


def test_the_configuration_shows_changed_fields_and_collapses_the_rest():
    defaults = {"seed": 0, "model": {"name": "a", "overrides": {}}, "teacher": {"recipe": None}, "new": 1}
    fields = {
        "seed": 0,
        "model": {"name": "b", "overrides": {"depth": 2}},
        "teacher": {"recipe": {"seed": 0, "model": {"name": "c", "overrides": {}}}},
    }
    changed, recipe, every = report.configuration(fields, defaults).html.split("<details>")
    text = Page(changed).text
    assert "model.name" in text and "model.overrides.depth" in text and "2 fields" in text
    assert "seed" not in text and "recipe" not in text
    text = Page("<details>" + recipe).text
    assert "teacher.recipe.model.name" in text and "seed" not in text
    assert "teacher.recipe.seed" in Page("<details>" + every).text


def test_fields_without_a_part_in_the_run_are_marked():
    fields, defaults = {"seed": 1, "teacher": {"name": "a"}}, {"seed": 0, "teacher": {"name": "b"}}
    changed, every = report.configuration(fields, defaults, lambda name: name == "teacher.name").html.split("<details>")
    assert "seed" in changed and "teacher" not in changed
    assert "a (not used)" in Page("<details>" + every).text


def test_confusion_shows_every_count_or_the_worst_classes():
    matrix = np.array([[5, 1], [0, 7]])
    section = report.confusion(matrix, ["cat", "dog"], "all 13")
    assert "12 of 13 right (92.3 %)" in Page(section.html).text
    assert [line.split("</td>")[0].split(">")[1] for line in section.html.split("<td class")[1:]] == [
        "5",
        "1",
        "0",
        "7",
    ]
    many = np.diag(np.full(50, 10))
    many[7] = 0
    many[7, [3, 7]] = 8, 2
    many[9] = 0  # without an image: neither good nor bad
    section = report.confusion(many, [f"class{k}" for k in range(50)], "all")
    first = section.html.split("<tbody>")[1].split("</tr>")[0]
    assert Page(first + "</tr>").text == "class71020.0class3 (8)"
    assert section.title == "Worst classes" and ">class9<" not in section.html


def test_curves_skip_non_finite_values_and_describe_their_ends():
    rows = [{"step": step, "train/loss": 3.0 - step / 100, "train/learning_rate": 1e-3} for step in range(1, 101)]
    rows[50]["train/loss"] = float("nan")
    rows[-1] |= {"eval/raw/class/top1": 55.0, "eval/ema/class/top1": 44.0}
    page = Page(report.curves(rows, steps_per_epoch=10, teacher_top1=77.0).html)
    charts = {a["aria-label"].partition(",")[0]: a["aria-label"] for a in page.all("svg") if a.get("role") == "img"}
    assert set(charts) == {"Training loss", "Accuracy on the evaluation images", "Learning rate"}
    assert "over epoch: all from 2.99 to 2." in charts["Training loss"]
    for curve in ("raw, class head from 55", "ema, class head from 44", "teacher 77"):
        assert curve in charts["Accuracy on the evaluation images"]
    points = next(a["points"] for a in page.all("polyline"))
    assert len(points.split()) == 99 and "nan" not in points
    assert "step" in Page(report.curves(rows, steps_per_epoch=1000, teacher_top1=None).html).text
    assert "metrics.jsonl is empty" in report.curves([], steps_per_epoch=10, teacher_top1=None).html


def test_throughput_shows_the_measured_speeds():
    rows = [{"step": 1, "train/loss": 1.0}]
    assert "too short to be timed" in report.throughput(rows, steps_per_epoch=10).html
    rows += [{"step": s, "images_per_second": 100.0 * s, "mfu": 0.25, "data_wait": 0.5} for s in (2, 3, 4)]
    text = Page(report.throughput(rows, steps_per_epoch=10).html).text
    for fact in ("images per second300", "25.0 %", "50.0 % of the time"):
        assert fact in text, fact
    del rows[-1]["mfu"]
    assert "peak is not listed" in report.throughput(rows, steps_per_epoch=10).html
