"""The counts of a teacher's decisions: which rows are compared, what is shown, and which teachers cause a warning."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.answers.decisions import Decisions, described_figures, target_classes, warning_of
from deit_jax.answers.files import AnswersFolder
from deit_jax.augment.mixing import smoothed_one_hot
from tests.answers.test_files import FACTS_OF, content

NAMES = ("cat", "dog", "cow")


def counts(decided, labels, mixed=()):
    """Counts of rows: the teacher's decisions, the labels, and the numbers of the mixed rows."""
    classes = np.array(labels)
    classes[list(mixed)] += len(NAMES)
    return Decisions.of(np.array(decided), classes, len(NAMES))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_the_class_of_a_target_and_whether_it_is_mixed(smoothing, num_classes):
    rows = smoothed_one_hot(jnp.array([0, 1, 1, 0]), num_classes, smoothing)
    partners = smoothed_one_hot(jnp.array([1, 1, 0, 1]), num_classes, smoothing)
    own = jnp.array([1.0, 0.4, 0.3, 0.8])[:, None]
    targets = jnp.concatenate([rows * own + partners * (1 - own), jnp.zeros((1, num_classes))])
    # Not mixed; mixed with its own class; mostly the partner's class; mostly its own; unlabelled.
    assert target_classes(targets, smoothing).tolist() == [0, 1, num_classes, num_classes, -1]


def test_unlabelled_rows_are_not_counted():
    figures = counts([0, 1, 2, 2], [0, 1, 1, -1]).figures(NAMES)
    assert (figures["rows"], figures["compared"], figures["right_percent"]) == (3, "all", 66.67)
    assert counts([0, 1], [-1, -1]).figures(NAMES) is None


def test_rows_that_are_not_mixed_are_compared_if_there_are_enough():
    decided, labels = np.zeros(1000, int), np.arange(1000) % 3
    mixed = range(300, 1000)
    figures = counts(decided, labels, mixed).figures(NAMES)
    assert described_figures(figures) == (
        "the teacher decides for the image's class in 33.3 % of the 300 training rows that are not mixed with another class; "
        'its most frequent decision is "cat", 100.0 %'
    )
    figures = counts(decided, labels, range(100, 1000)).figures(NAMES)
    assert "larger class of the target in 33.4 % of 1,000 training rows" in described_figures(figures)
    assert "image's class in 33.4 % of 1,000 training rows;" in described_figures(
        counts(decided, labels).figures(NAMES)
    )


def test_counts_add_up_and_survive_a_file(tmp_path):
    one, other = counts([0, 1], [0, 2], [1]), counts([2, 2], [2, 2])
    both = counts([0, 1, 2, 2], [0, 2, 2, 2], [1])
    assert (one + other).array().tolist() == both.array().tolist()
    assert Decisions.from_array(both.array()).figures(NAMES) == both.figures(NAMES)


@pytest.mark.parametrize(
    ("decided", "labels", "warns"),
    [
        ([70, 15, 15], [34, 33, 33], True),  # collapsed
        ([60, 20, 20], [34, 33, 33], False),
        ([90, 5, 5], [90, 5, 5], False),  # as unbalanced as the data
        ([100, 0, 0], [90, 5, 5], True),  # a constant
        ([99, 1, 0], [50, 50, 0], True),  # nearly a constant, of two classes
        ([94, 6, 0], [50, 50, 0], False),  # of two classes, and right more often than a constant
    ],
)
def test_a_teacher_that_names_one_class_warns_unless_the_labels_do(decided, labels, warns):
    of_kind = [np.repeat(np.arange(3), np.multiply(10, each)) for each in (decided, labels)]
    assert (warning_of(counts(*of_kind).figures(NAMES)) is not None) == warns


def test_a_teacher_that_is_worse_than_a_constant_warns():
    labels = np.arange(900) % 3
    assert "less often than the most frequent class" in warning_of(counts((labels + 1) % 3, labels).figures(NAMES))
    assert warning_of(counts(labels, labels).figures(NAMES)) is None
    assert warning_of(counts((labels[:90] + 1) % 3, labels[:90]).figures(NAMES)) is None  # too few rows to tell
    mostly = np.where(np.arange(900) % 10 < 9, 0, 1)
    slightly_worse = np.where(np.arange(900) % 10 < 8, 0, 1)
    assert warning_of(counts(slightly_worse, mostly).figures(NAMES)) is None


def test_figures_of_a_folder_are_those_of_its_shards(tmp_path):
    """Shards of an earlier version have no counts; a longer recording starts without figures."""
    folder, names = AnswersFolder(tmp_path), [str(number) for number in range(10)]
    folder.write_facts(FACTS_OF)
    folder.write(FACTS_OF, 0, content(FACTS_OF, 0))
    assert folder.write_figures(FACTS_OF, names) is None and folder.figures() is None
    for shard in (1, 2):
        found = content(FACTS_OF, shard)
        of_shard = Decisions.of(found["decision"], np.ones_like(found["decision"], np.int64), 10)
        folder.write(FACTS_OF, shard, found, of_shard)
        np.testing.assert_array_equal(folder.read(FACTS_OF, shard)["decision"], found["decision"])
    figures = folder.write_figures(FACTS_OF, names)
    assert (figures["steps"], figures["rows"], figures["label_percent"]) == (4, 32, 100)
    assert folder.figures() == figures and folder.facts() == FACTS_OF
    folder.write_facts(dataclasses.replace(FACTS_OF, total_steps=9))
    assert folder.figures() is None
