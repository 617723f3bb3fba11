"""A teacher that commands of tests can import: ten logits from the brightness and the colours of an image's two halves."""

import numpy as np


def teach(images):
    left, right = np.split(images, 2, axis=2)
    means = np.concatenate([half.mean((1, 2), dtype=np.float64) for half in (left, right)], axis=1)
    return np.concatenate([means, -means[:, :4]], axis=1)


teach.image_size = 14
