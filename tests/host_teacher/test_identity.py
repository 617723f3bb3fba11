import hashlib

import numpy as np

from deit_jax.host_teacher.identity import fixed_images, relative_difference


def test_the_fixed_images_never_change():
    images = fixed_images(32)
    assert images.dtype == np.uint8 and images.shape == (8, 32, 32, 3)
    assert hashlib.sha256(images.tobytes()).hexdigest().startswith("3b52a664adce5293")


def test_they_are_smooth_different_and_the_same_at_every_size():
    images = fixed_images(64).astype(float)
    for one in range(8):
        for other in range(one):
            assert np.abs(images[one] - images[other]).mean() > 10
    assert np.abs(np.diff(images, axis=2)).mean() < 10 < images.std(axis=(1, 2)).mean()
    assert images.mean(axis=(1, 2)).std(axis=0).min() > 20  # bright and dark ones, of many colours
    small = fixed_images(16)
    np.testing.assert_array_equal(fixed_images(64)[:, ::4, ::4], small)


def test_differences_are_relative_to_the_largest():
    assert relative_difference([[100.0, 1.0]], [[100.1, 1.0]]) < 1.01e-3
    assert relative_difference([[100.0, 1.0]], [[100.0, 2.0]]) == 0.01
    assert relative_difference([[1.0]], [[1.0, 1.0]]) == float("inf")
    assert relative_difference(np.zeros((2, 3)), np.zeros((2, 3))) == 0
