import numpy as np
import pytest

from deit_jax.data.sources import ArraySource, DataError, labels_of
from deit_jax.data.splits import held_out, share_images, split_name, take_of_each_class, take_part


def numbered(count):
    """The label is the index."""
    return ArraySource(np.zeros((count, 2, 2), np.uint8), np.arange(count), tuple(map(str, range(count))))


def part(expression, count=200):
    source = take_part(numbered(count), expression)
    assert len(source.class_names) == count
    return [source[i].label for i in range(len(source))]


def test_parts_are_disjoint_and_complete():
    for border in ("90%", "37", "-10", "33%"):
        first, second = part(f"train[:{border}]"), part(f"train[{border}:]")
        assert sorted(first + second) == list(range(200))
        assert first == sorted(first) and second == sorted(second)  # the source's order is kept


@pytest.mark.parametrize(
    ("train", "evaluation", "common"),
    [
        ("train", "train", True),
        ("train", "train[90%:]", True),
        ("train[:90%]", "train[80%:]", True),
        ("train[:1000]", "train[:10]", True),
        ("train[:90%]", "train[90%:]", False),
        ("train[:-100]", "train[-100:]", False),
        ("train[1000:]", "train[:10%]", False),  # only if the split is large
        ("train", "validation", False),
        ("train[:50%]", "val[:50%]", False),
        ("train[:10%]+extra", "train", False),
        ("train+extra", "train+extra", True),
    ],
)
def test_common_images_of_two_parts_are_known_without_the_split(train, evaluation, common):
    assert share_images(train, evaluation) == common == share_images(evaluation, train)


def test_sizes():
    assert len(part("train")) == len(part("train[:]")) == len(part("train[0:200]")) == 200
    assert (len(part("train[:90%]")), len(part("train[90%:]")), len(part("train[100:150]"))) == (180, 20, 50)
    assert len(part("train[-25%:]")) == 50 and len(part("train[10%:-10]")) == 170


def test_percentages_are_rounded_to_the_nearest_image():
    assert [len(part(f"train[:{percent}%]", 7)) for percent in (8, 21, 22, 50, 92, 93)] == [1, 1, 2, 4, 6, 7]


def test_parts_are_random_and_reproducible():
    labels = part("train[:100]")
    assert labels == part("train[:50%]") and labels != list(range(100))
    assert 30 < sum(label < 100 for label in labels) < 70  # both halves of a list sorted by class are represented
    assert set(part("train[:50]")) < set(labels)


def test_invalid_expressions_raise():
    for expression in ("train[", "train[5]", "train[:x]", "train[:10.5%]", "", "train[:5]+test", "[:5]"):
        with pytest.raises(DataError, match="is invalid; write"):
            take_part(numbered(4), expression)
    for expression in ("train[3:3]", "train[4:]", "train[60%:40%]", "train[:1%]"):
        with pytest.raises(DataError, match="is empty"):
            take_part(numbered(4), expression)
    assert split_name("validation[10%:]") == split_name("validation") == "validation"


def test_errors_name_the_original_image():
    source = take_part(numbered(20), "train[:5]")
    assert source.describe(0) == f"image {source[0].label} of the arrays"


def test_held_out_images_are_a_share_of_each_class():
    names = [f"{label}/{i}.jpg" for label, count in enumerate((20, 7, 2, 1)) for i in range(count)]
    labels = np.repeat(np.arange(4), (20, 7, 2, 1))
    held = held_out(names, labels, 0.2)
    assert np.bincount(labels[held], minlength=4).tolist() == [4, 1, 1, 0]
    assert held_out(names, labels, 0.99)[:20].sum() == 19  # one is kept for training
    assert held[:20].tolist() != sorted(held[:20])  # not the first or last ones
    assert np.array_equal(held, held_out(names, labels, 0.2))
    shuffled = np.random.default_rng(0).permutation(len(names))
    assert np.array_equal(held[shuffled], held_out([names[i] for i in shuffled], labels[shuffled], 0.2))


def test_held_out_images_are_stable_when_one_is_added():
    names = [f"a/{i}.jpg" for i in range(100)]
    before = held_out(names, np.zeros(100, int), 0.2)
    after = held_out([*names, "a/new.jpg"], np.zeros(101, int), 0.2)[:100]
    assert (before != after).sum() <= 1


def test_take_of_each_class():
    labels = np.random.default_rng(3).choice(3, 300, p=(0.2, 0.3, 0.5))
    images = np.arange(300, dtype=np.uint8).reshape(-1, 1, 1) + np.zeros((300, 2, 2), np.uint8)
    source = ArraySource(images, labels, ("a", "b", "c"), origin="x")
    few, more = take_of_each_class(source, 5), take_of_each_class(source, 20)
    for part, count in ((few, 5), (more, 20)):
        found = [part[i].label for i in range(len(part))]
        assert np.bincount(found).tolist() == [count] * 3 and found == labels_of(part).tolist()
        where = [int(part.describe(i).split()[1]) for i in range(len(part))]
        assert where == sorted(where) and where != list(range(len(where)))
    assert {few.describe(i) for i in range(15)} < {more.describe(i) for i in range(60)}
    inner = take_part(source, "train[:50%]")
    assert len(take_of_each_class(inner, 3)) == 9  # also from a part


def test_too_few_images_and_unknown_labels_raise():
    source = ArraySource(np.zeros((5, 2, 2), np.uint8), np.array([0, 0, 0, 1, 1]), ("cat", "dog"))
    with pytest.raises(DataError, match="images_per_class=3, but class 'dog' has 2 training images"):
        take_of_each_class(source, 3)

    source.labels = None
    with pytest.raises(DataError, match=r"data\.train_split='train\[:20%\]'"):
        take_of_each_class(source, 1)
