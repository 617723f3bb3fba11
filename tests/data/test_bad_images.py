import itertools

import pytest

from deit_jax.data.bad_images import BadImages


def test_images_are_counted_by_batch():
    counts = (0, 2, 0, 0, 1, 3, 0)
    bad_images = BadImages(lambda line: None)
    for number, count in enumerate(counts):
        bad_images.add([f"image {number}"] * count)
    assert [bad_images.count(batches) for batches in range(8)] == list(itertools.accumulate(counts, initial=0))
    assert bad_images.count() == 6 and BadImages().count() == 0


@pytest.mark.parametrize(
    ("action", "expected"), [("replaced", "2 image(s) could not be used and were replaced 3 times")]
)
def test_the_first_images_are_named_and_the_rest_counted(action, expected):
    lines = []
    bad_images = BadImages(lines.append, action)
    bad_images.warn_of_total()
    assert lines == []
    for batch in (["a"], ["a", "b"]):
        bad_images.add(batch)
    bad_images.warn_of_total()
    assert lines == ["replaced: a", "replaced: b", expected]
