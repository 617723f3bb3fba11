import io
import sys

import pytest

from deit_jax import console

NASTY = "[red]\x1b[31m\n花[/]"
SHOWN = r"[red]\x1b[31m\n花[/]"


@pytest.fixture
def stream(monkeypatch):
    """Replaces sys.stdout by a stream with an encoding; returns a function that reads it."""

    def of(encoding):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True))
        return raw

    return of


def everything():
    console.announce(NASTY, {NASTY: NASTY})
    console.table(NASTY, (NASTY, NASTY), [(NASTY, NASTY)])
    console.summary(NASTY, [(NASTY, 1.0, None, None)], {NASTY: [(NASTY, 2.0, 3.0, 4.0)]}, notes=[NASTY])
    console.show(NASTY)
    console.say(NASTY)
    console.warn(NASTY)


def test_names_are_printed_without_markup(stream):
    raw = stream("utf-8")
    everything()
    printed = raw.getvalue().decode()
    assert "\x1b" not in printed and printed.count(SHOWN) == 16


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
def test_characters_that_the_encoding_lacks_are_escaped_and_columns_stay_aligned(stream, encoding):
    raw = stream(encoding)
    everything()
    console.table("t", ("class", "p"), [("花", "1"), ("plain", "2")])
    printed = raw.getvalue().decode(encoding)
    assert printed.count(SHOWN.replace("花", r"\u82b1")) == 16
    table = printed.splitlines()[-6:]
    assert r"| \u82b1 | 1 |" in table and len({len(line) for line in table}) == 1, table


LINE = {"step": 7, "total_steps": 10, "epoch": 0.5, "loss": 1.5, "learning_rate": 1e-3, "data_wait": 0.0}
PARTS = {"class_loss": 1.25, "distillation_loss": 1.75, "teacher_agreement": 0.434}


def test_the_progress_line_has_the_parts_of_a_loss_with_a_teacher_if_they_fit(capsys):
    console.progress(**LINE, speed=None, eta=None)
    console.progress(**LINE, speed=None, eta=None, parts=PARTS)
    one_device = {"images_per_second": 12345.0, "images_per_second_per_device": 12345.0}
    console.progress(**LINE, speed=one_device, eta=5000, parts=PARTS)
    console.progress(**LINE | {"data_wait": 0.3}, speed=one_device, eta=5000, parts=PARTS)
    plain, taught, timed, waiting = capsys.readouterr().out.splitlines()
    assert plain == "step  7/10  epoch   0.50  loss 1.5000  lr 0.001"
    parts = " (class 1.250, teacher 1.750, agrees 43 %)"
    assert taught == plain.replace("  lr", parts + "  lr") and parts in timed and len(timed) <= 120
    assert "loss 1.5000  lr" in waiting and "waiting for data" in waiting


@pytest.mark.parametrize("columns", ["0", "1", "-5", "wide", ""])
def test_text_is_shown_at_any_width(stream, monkeypatch, columns):
    raw = stream("utf-8")
    monkeypatch.setenv("COLUMNS", columns)
    console.show("some words")
    console.table("title", ("a", "b"), [("one", "two")])
    assert "some words" in raw.getvalue().decode() and "two" in raw.getvalue().decode()


def test_a_process_without_standard_output_prints_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    everything()


def test_a_fact_of_several_lines_has_a_line_for_each(stream):
    raw = stream("utf-8")
    console.announce("Run", {"data notes": ["skipped in a: 1 file", f"skipped in {NASTY}"]})
    lines = [line.strip() for line in raw.getvalue().decode().splitlines()]
    assert lines == ["Run", "data notes  skipped in a: 1 file", f"skipped in {SHOWN}"]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (200, "3m 20s"), (7500, "2h 05m")])
def test_durations(seconds, text):
    assert console.duration(seconds) == text
