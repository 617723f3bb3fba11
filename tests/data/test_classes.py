import numpy as np
import pytest

from deit_jax.data.classes import ClassesError, difference, order_of, with_classes
from deit_jax.data.sources import ArraySource, Example, UnusableError, fingerprint_of

TRAINED = ("ant", "bee", "cow", "dog")


def source_of(names, labels=None):
    labels = np.arange(len(names)) if labels is None else np.asarray(labels)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    return ArraySource(images, labels, tuple(names))


def matched(source, trained=TRAINED, **options):
    return with_classes(source, trained, what="the images in X", of="the run in R", **options)


def test_same_classes_return_the_same_source():
    source = source_of(TRAINED)
    assert matched(source) is source


@pytest.mark.parametrize("names", [("dog", "bee"), ("dog", "cow", "bee", "ant")])
def test_labels_match_names_of_a_subset_or_another_order(names):
    source = source_of(names)
    found = matched(source)
    assert found.class_names == TRAINED and len(found) == len(names)
    for i, name in enumerate(names):
        example = found[i]
        assert TRAINED[example.label] == name
        np.testing.assert_array_equal(example.image, source[i].image)  # images keep their positions
    assert found.describe(1) == source.describe(1) and fingerprint_of(found) == fingerprint_of(source)


def test_all_labels_of_a_multi_label_image_are_mapped():
    class Several:
        multi_label, class_names = True, ("cow", "ant")

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return Example(np.zeros((2, 2), np.uint8), [(0, 1), ()][index])

        def describe(self, index):
            return str(index)

    found = matched(Several())
    assert found.multi_label and [found[i].label for i in range(2)] == [(2, 0), ()]


def test_invalid_label_is_reported():
    found = matched(source_of(("dog", "bee")))
    found._source.labels[:] = 7, -1
    for i, label in enumerate((7, -1)):
        with pytest.raises(UnusableError, match=rf"image {i} of .*: label {label} is outside the 2 classes"):
            found[i]


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("ant", "bee", "cow", "wolf"), "new: 'wolf'; missing: 'dog'"),
        (("ant", "bee", "cow", "dog", "eel"), "new: 'eel'"),
        (("0-ant", "1-bee"), "new: '0-ant', '1-bee'; missing: 'ant', 'bee', 'cow' and 1 more"),
        (("Ant", "bee", "cow", "dog"), "'Ant' and 'ant' differ only in case or spaces"),
        (("ant\x1b[31m",), r"new: 'ant\x1b[31m'"),
        (("dog", "dog"), "the class name 'dog' occurs twice"),
    ],
)
def test_other_classes_raise_with_the_difference(names, shown):
    with pytest.raises(ClassesError) as error:
        matched(source_of(names))
    message = str(error.value)
    assert shown in message and "\n" not in message and "\x1b" not in message
    assert "the images in X" in message and "the run in R" in message


def test_accents_in_two_unicode_forms_are_reported():
    shown = difference(("Ko\u0308ln", "Bonn"), ("K\u00f6ln", "Bonn"))
    assert shown.endswith(
        r"'Ko\u0308ln' and 'K\xf6ln' are the same letters in composed and decomposed Unicode characters"
    )
    assert difference(("b", "a"), ("a", "b")) == "the same names in another order, class 0 is 'b', not 'a'"


def test_numeric_names_are_indices_if_enabled():
    source = source_of(("0", "1", "2", "3"), [3, 1])
    found = matched(source, numbers=True)
    assert found.class_names == TRAINED and [found[i].label for i in range(2)] == [3, 1]
    for names in (("0", "1", "2"), ("1", "2", "3", "4"), ("0", "1", "2", "3", "4"), ("00", "01", "02", "03")):
        with pytest.raises(ClassesError):
            matched(source_of(names), numbers=True)
    with pytest.raises(ClassesError):
        matched(source)


def test_numeric_names_match_as_names_first():
    trained = ("0", "1", "10", "2")  # as torchvision sorts them
    found = matched(source_of(("0", "1", "2", "10")), trained, numbers=True)
    assert [found[i].label for i in range(4)] == [0, 1, 3, 2]
    found = matched(source_of(("0", "1", "2", "3")), ("3", "1", "2", "0"), numbers=True)
    assert [found[i].label for i in range(4)] == [3, 1, 2, 0]


def test_order_of_the_same_names():
    assert order_of(("c", "a", "b"), ("a", "b", "c")) == (2, 0, 1)
    assert order_of(("a", "b"), ("a", "b", "c")) is None
    assert order_of(("a", "a"), ("a", "a")) == (0, 1)
    assert order_of(("a", "a", "b"), ("b", "a", "a")) is None
