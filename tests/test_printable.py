import os

import pytest

from deit_jax.printable import all_printable, in_a_spreadsheet, in_one_line, is_utf8, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tabby, tabby cat", "tabby, tabby cat"),
        ("Köln 花 🐈\u200d⬛ עברית $5 [red]", "Köln 花 🐈\u200d⬛ עברית $5 [red]"),
        ("\x1b[2Jgone\x07", r"\x1b[2Jgone\x07"),
        ("a\nb\tc\rd\x00", r"a\nb\tc\rd\x00"),
        ("a\x85b\u2028c\x9b31m", r"a\x85b\u2028c\x9b31m"),
        ("gpj.\u202egnp\u2066", r"gpj.\u202egnp\u2066"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        (b"\xe8\x8a\xb1".decode("ascii", "surrogateescape"), "花"),  # from a C locale
        ("half of a pair \ud83d", r"half of a pair \ud83d"),
    ],
)
def test_control_characters_are_escaped_and_others_kept(text, shown):
    assert printable(text) == shown
    assert is_utf8(printable(text)) and printable(printable(text)) == printable(text)


def test_messages_are_joined_into_one_line():
    assert in_one_line("one\n  two\r\nthree\x1b[0m") == r"one two three\x1b[0m"


@pytest.mark.parametrize("formula", ["=HYPERLINK(1)", "+cmd", "-cmd", "@SUM(A1)", " =1+1"])
def test_formulas_are_disarmed_for_spreadsheets(formula):
    assert in_a_spreadsheet(formula) == f"'{formula}"


@pytest.mark.parametrize("text", ["cat", "-1", "+3.5", "a=b", ""])
def test_other_texts_are_unchanged_for_spreadsheets(text):
    assert in_a_spreadsheet(text) == text


def test_all_texts_of_a_configuration_become_printable():
    given = {"data": {"path": "a\udcff", "n": 3}, "x\x1b": ("b\n", None, True)}
    assert all_printable(given) == {"data": {"path": r"a\xff", "n": 3}, r"x\x1b": [r"b\n", None, True]}
