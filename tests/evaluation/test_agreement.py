import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.evaluation.agreement import decide, disagreement, make_decide_step
from deit_jax.models import ModelOutput

MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


class Lookup(nn.Module):
    """A model that reads its decisions off the first pixel: red is the class head's, green the distillation head's."""

    def __call__(self, images):
        classes = jnp.round(images[:, 0, 0] * 255).astype(jnp.int32)
        first, second = jnp.eye(10)[classes[:, 0]], 3 * jnp.eye(10)[classes[:, 1]]
        return ModelOutput((first + second) / 2, first, second)


def batch(red, green, labels, size):
    image = np.zeros((size, 2, 2, 3), np.uint8)
    image[: len(red), 0, 0, 0], image[: len(red), 0, 0, 1] = red, green
    padded = np.zeros(size, np.int32)
    padded[: len(labels)] = labels
    return {"image": image, "label": padded, "mask": np.arange(size) < len(labels)}


def test_decisions_of_all_heads_are_kept_in_order_without_the_padding():
    batches = [batch([1, 2, 3], [1, 5, 6], [1, 2, 6], 3), batch([7], [8], [9], 3)]
    decisions, labels = decide(make_decide_step(Lookup(), mean=MEAN, std=STD), {}, batches)
    assert list(decisions) == ["class", "distillation", "both"]
    np.testing.assert_array_equal(labels, [1, 2, 6, 9])
    np.testing.assert_array_equal(decisions["class"], [1, 2, 3, 7])
    np.testing.assert_array_equal(decisions["distillation"], [1, 5, 6, 8])
    np.testing.assert_array_equal(decisions["both"], decisions["distillation"])  # whose logits are larger


def test_the_matrix_is_the_share_of_different_decisions():
    rng = np.random.default_rng(0)
    columns = {name: rng.integers(0, 3, 50) for name in "abcd"}
    columns["e"] = columns["a"].copy()
    columns["e"][:5] = (columns["a"][:5] + 1) % 3
    matrix = disagreement(columns)
    for i, one in enumerate(columns.values()):
        for j, other in enumerate(columns.values()):
            assert matrix[i, j] == sum(int(x) != int(y) for x, y in zip(one, other, strict=True)) / 50
    assert matrix[0, 4] == 0.1
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(np.diag(matrix), 0)


@pytest.mark.parametrize("columns", [{"a": np.zeros(3), "b": np.zeros(4)}, {"a": np.zeros(0), "b": np.zeros(0)}])
def test_decisions_on_other_images_are_refused(columns):
    with pytest.raises(ValueError, match="for the same images"):
        disagreement(columns)
