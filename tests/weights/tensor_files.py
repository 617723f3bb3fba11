"""What the tests of weights files share: some tensors, writing and comparing them, and a pickle that does harm."""

import numpy as np

from deit_jax.weights.files import encode, write_files

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.array([np.pi, -0.0], np.float32),
    "count": np.array(7, np.int64),
}


class RemovesAFile:
    """Pickled, it deletes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.remove, (str(self.path),)


def write_file(path, tensors, wrapper=None):
    write_files({path: encode(path, tensors, wrapper=wrapper)})


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert found[name].tobytes() == tensor.tobytes(), name
