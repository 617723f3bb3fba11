import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.augment import erasing
from deit_jax.augment.keys import fold_in_each

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "augment_mixing.npz")


def test_boxes_equal_timm_for_the_same_draws():
    """24 images of 20 x 30; in some the first tries do not fit, in the last none does."""
    boxes = jax.jit(jax.vmap(lambda a, r, c: erasing.first_fitting_box(a, r, c, (20, 30))))(
        GOLDEN["erase_area"].astype(np.float32),
        GOLDEN["erase_log_aspect"].astype(np.float32),
        GOLDEN["erase_corner"].astype(np.float32),
    )
    images = jnp.ones((24, 20, 30, 3))
    erased = erasing.erase(fold_in_each(jax.random.key(0), jnp.arange(24)), images, boxes, "const")
    for channel in range(3):
        np.testing.assert_array_equal(erased[..., channel] == 0, GOLDEN["erased"])


def test_distribution_of_boxes():
    keys = fold_in_each(jax.random.key(1), jnp.arange(20_000))
    boxes = np.asarray(jax.jit(erasing.draw_boxes, static_argnums=(1, 2))(keys, 0.25, (224, 224)))
    assert abs(np.mean(boxes[:, 1] > 0) - 0.25) < 0.015
    top, bottom, left, right = boxes[boxes[:, 1] > 0].T
    assert min(top.min(), left.min()) >= 0 and max(bottom.max(), right.max()) <= 224
    area = (bottom - top) * (right - left) / 224**2
    # Boxes that do not fit are large ones: the mean lies below the (0.02 + 1/3) / 2 of the tries.
    assert area.min() > 0.018 and area.max() < 0.34 and 0.15 < area.mean() < 0.178
    log_aspect = np.log((bottom - top) / (right - left))
    assert np.abs(log_aspect).max() < 1.3 and abs(log_aspect.mean()) < 0.05
    assert 0.58 < log_aspect.std() < 0.71  # uniform in +-1.2: 0.695
    # Corners are uniform over the places where the box fits.
    for low, size in ((top, bottom - top), (left, right - left)):
        assert abs(np.mean(low / np.maximum(224 - size, 1)) - 0.5) < 0.02


@pytest.fixture(scope="module")
def erased():
    boxes = jnp.asarray([[2, 12, 3, 33], [0, 0, 0, 0], [0, 40, 0, 40], [5, 6, 7, 8]])
    keys = fold_in_each(jax.random.key(2), jnp.arange(4))
    images = jnp.full((4, 40, 40, 3), 9.0)
    return {mode: np.asarray(erasing.erase(keys, images, boxes, mode)) for mode in erasing.MODES}


def test_only_the_box_changes(erased):
    for values in erased.values():
        assert np.all(values[1] == 9)
        changed = np.any(values[0] != 9, axis=-1)
        assert changed[2:12, 3:33].all() and changed.sum() == 10 * 30
        assert np.any(values[3] != 9, axis=-1).sum() == 1


def test_fills(erased):
    assert np.all(erased["const"][2] == 0)
    noise = erased["pixel"][2]
    assert len(np.unique(noise)) > 4000
    assert abs(noise.mean()) < 0.06 and abs(noise.std() - 1) < 0.05
    colours = erased["rand"][2].reshape(-1, 3)
    assert np.all(colours == colours[0]) and len(set(colours[0].tolist())) == 3
    assert not np.any(erased["rand"][0][3, 4] == colours[0])  # another image, another colour


def test_accelerators_give_the_same_noise(erased):
    """On a CPU images are erased one by one, elsewhere all at once."""
    keys = fold_in_each(jax.random.key(2), jnp.arange(4))
    box = jnp.asarray([2, 12, 3, 33])
    noise = jax.vmap(lambda key: jax.random.normal(key, (40, 40, 3)))(keys)
    filled = erasing.fill_box(jnp.full((40, 40, 3), 9.0), box, noise[0])
    np.testing.assert_allclose(filled, erased["pixel"][0], rtol=1e-6, atol=1e-6)


def test_unknown_mode():
    with pytest.raises(ValueError, match="'gauss' is none of pixel, rand, const"):
        erasing.erase(jax.random.split(jax.random.key(0), 1), jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 4)), "gauss")
