import numpy as np
import pytest

from deit_jax.data.sources import ArraySource, DataError
from deit_jax.data.splits import split_name, take_part


def numbered(count):
    """The label is the index."""
    return ArraySource(np.zeros((count, 2, 2), np.uint8), np.arange(count), tuple(map(str, range(count))))


def part(expression, count=200):
    source = take_part(numbered(count), expression)
    assert len(source.class_names) == count
    return [source[i].label for i in range(len(source))]


def test_parts_share_no_image_and_leave_none_out():
    for border in ("90%", "37", "-10", "33%"):
        first, second = part(f"train[:{border}]"), part(f"train[{border}:]")
        assert sorted(first + second) == list(range(200))
        assert first == sorted(first) and second == sorted(second)  # the source's order is kept


def test_sizes():
    assert len(part("train")) == len(part("train[:]")) == len(part("train[0:200]")) == 200
    assert (len(part("train[:90%]")), len(part("train[90%:]")), len(part("train[100:150]"))) == (180, 20, 50)
    assert len(part("train[-25%:]")) == 50 and len(part("train[10%:-10]")) == 170


def test_percentages_are_rounded_to_the_nearest_image():
    assert [len(part(f"train[:{percent}%]", 7)) for percent in (8, 21, 22, 50, 92, 93)] == [1, 1, 2, 4, 6, 7]


def test_a_part_is_a_random_one_and_always_the_same():
    labels = part("train[:100]")
    assert labels == part("train[:50%]") and labels != list(range(100))
    assert 30 < sum(label < 100 for label in labels) < 70  # of a list sorted by class no half is missing
    assert set(part("train[:50]")) < set(labels)


def test_what_cannot_be_understood_is_refused():
    for expression in ("train[", "train[5]", "train[:x]", "train[:10.5%]", "", "train[:5]+test", "[:5]"):
        with pytest.raises(DataError, match="cannot be understood; write"):
            take_part(numbered(4), expression)
    for expression in ("train[3:3]", "train[4:]", "train[60%:40%]", "train[:1%]"):
        with pytest.raises(DataError, match="is empty"):
            take_part(numbered(4), expression)
    assert split_name("validation[10%:]") == split_name("validation") == "validation"


def test_errors_still_name_the_original_image():
    source = take_part(numbered(20), "train[:5]")
    assert source.describe(0) == f"image {source[0].label} of the arrays"
