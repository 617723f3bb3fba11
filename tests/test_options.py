import json

import pytest
from ml_collections import ConfigDict

from deit_jax.config import OPTIONS, default_config
from deit_jax.config_record import BEFORE_IT_EXISTED
from deit_jax.options import Kind, Option
from tests.end_to_end.commands import ROOT


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (int, Kind(int)),
        (float | None, Kind(float, optional=True)),
        (tuple[float, float], Kind(tuple, element=float, length=2)),
        (tuple[str, ...], Kind(tuple, element=str)),
        (tuple[int, ...] | None, Kind(tuple, optional=True, element=int)),
        (tuple[tuple[str, str], ...], Kind(tuple, element=tuple)),
    ],
)
def test_kinds_follow_from_annotations(annotation, kind):
    assert Kind.of_annotation(annotation) == kind


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        (Option(1, "", at_least=1, kind=Kind(int)), 0, " must be at least 1"),
        (Option(1, "", at_least=1, kind=Kind(int)), 1, None),
        (Option(1, "", kind=Kind(int)), 2**32, " must be at most 4294967295"),
        (Option(0.5, "", at_least=0, below=1, kind=Kind(float)), 1.0, " must be at least 0 and below 1"),
        (Option(0.5, "", above=0, kind=Kind(float)), 0, " must be above 0"),
        (Option(None, "", above=0, kind=Kind(float, optional=True)), None, None),
        (Option(None, "", kind=Kind(float)), None, ": give a finite number"),
        (Option("a", "", choices=("a", "b")), "c", " is none of a, b"),
        (
            Option("xla", "", choices="models.attention.ATTENTIONS"),
            "flash",
            " is none of auto, xla, dot_product, pallas, cudnn",
        ),
        (Option((), "", ordered=True, kind=Kind(tuple, length=2)), (2, 1), ": give the smaller number first"),
        (Option((), "", kind=Kind(tuple, length=2)), [1], ": give 2 numbers, separated by commas"),
        (Option("auto", "", at_least=0, kind=Kind(int, words=("auto",))), "auto", None),
        (Option("auto", "", at_least=0, kind=Kind(int, words=("auto",))), -1, " must be at least 0"),
        (Option("auto", "", at_least=0, kind=Kind(int, words=("auto",))), "many", ": give a whole number, or auto"),
        (Option((), "", at_most=3, kind=Kind(tuple, element=int)), (3, 4), " must be at most 3"),
    ],
)
def test_complaints_about_values(option, value, complaint):
    assert option.complaint(value) == complaint


def test_a_number_that_may_be_a_word_takes_both_in_a_configuration():
    config = default_config()
    assert config.data.num_workers == "auto"
    for value in (4, "auto", 0):
        config.data.num_workers = value
        assert json.loads(config.to_json_best_effort())["data"]["num_workers"] == value


def test_every_default_is_allowed_by_its_declaration():
    config = default_config()
    for name, option in OPTIONS.items():
        value = config
        for part in name.split("."):
            value = value[part]
        assert option.complaint(value) is None, name
        if name in BEFORE_IT_EXISTED and option.kind.base is not ConfigDict:
            assert option.complaint(BEFORE_IT_EXISTED[name]) is None, name


def test_the_meaning_of_a_missing_field_never_changes():
    """A new field adds a line to the file. Existing lines never change, even if the default does."""
    recorded = json.loads((ROOT / "tests/golden/before_it_existed.json").read_text())
    assert recorded == json.loads(json.dumps(BEFORE_IT_EXISTED))
