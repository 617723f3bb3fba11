import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.augment import erasing
from deit_jax.augment.mixing import fold_in_each

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "augment_mixing.npz")


def test_boxes_equal_timm_for_the_same_draws():
    """24 images of 20 x 30; in some the first candidates do not fit, in the last none fits."""

    @jax.jit
    def erase(*scripted):
        boxes = jax.vmap(lambda *of_image: erasing.first_fitting_box(*of_image, (20, 30)))(*scripted)
        keys = fold_in_each(jax.random.key(0), jnp.arange(24))
        return erasing.erase(keys, jnp.ones((24, 20, 30, 3)), boxes[:, None], "const")

    erased = erase(*(GOLDEN[f"erase_{name}"].astype(np.float32) for name in ("area", "log_aspect", "corner")))
    for channel in range(3):
        np.testing.assert_array_equal(erased[..., channel] == 0, GOLDEN["erased"])


def test_distribution_of_boxes():
    keys = fold_in_each(jax.random.key(1), jnp.arange(20_000))
    boxes = np.asarray(jax.jit(erasing.draw_boxes, static_argnums=(1, 2))(keys, 0.25, (224, 224)))[:, 0]
    assert abs(np.mean(boxes[:, 1] > 0) - 0.25) < 0.015
    top, bottom, left, right = boxes[boxes[:, 1] > 0].T
    assert min(top.min(), left.min()) >= 0 and max(bottom.max(), right.max()) <= 224
    area = (bottom - top) * (right - left) / 224**2
    # Boxes that do not fit are large, so the mean is below the candidates' (0.02 + 1/3) / 2.
    assert area.min() > 0.018 and area.max() < 0.34 and 0.15 < area.mean() < 0.178
    log_aspect = np.log((bottom - top) / (right - left))
    assert np.abs(log_aspect).max() < 1.3 and abs(log_aspect.mean()) < 0.05
    assert 0.58 < log_aspect.std() < 0.71  # uniform in +-1.2: 0.695
    # Corners are uniform over the positions where the box fits.
    for low, size in ((top, bottom - top), (left, right - left)):
        assert abs(np.mean(low / np.maximum(224 - size, 1)) - 0.5) < 0.02


def test_several_boxes():
    """Their number is uniform, and they share the area of one."""
    keys = fold_in_each(jax.random.key(1), jnp.arange(8_000))
    boxes = np.asarray(jax.jit(erasing.draw_boxes, static_argnums=(1, 2, 3))(keys, 0.5, (224, 224), 3))
    assert boxes.shape == (8_000, 3, 4)
    top, bottom, left, right = np.moveaxis(boxes, -1, 0)
    area = (bottom - top) * (right - left) / 224**2
    count = np.sum(area > 0, axis=1)
    np.testing.assert_allclose(np.bincount(count) / 8_000, [0.5, 1 / 6, 1 / 6, 1 / 6], atol=0.02)
    for number in (1, 2, 3):
        assert area[count == number].max() < 0.337 / number
    assert not np.any(area[count == 1, 1:]) and not np.any(area[count == 2, 2])


@pytest.fixture(scope="module")
def erased():
    """30 rows are not a multiple of a strip; the last image has two boxes that overlap."""
    boxes = jnp.zeros((4, 2, 4), jnp.int32)
    boxes = boxes.at[0, 0].set(jnp.asarray([2, 12, 3, 33])).at[2, 0].set(jnp.asarray([0, 30, 0, 40]))
    boxes = boxes.at[3].set(jnp.asarray([[5, 8, 7, 9], [7, 20, 8, 12]]))
    keys = fold_in_each(jax.random.key(2), jnp.arange(4))
    images = jnp.full((4, 30, 40, 3), 9.0)
    erase = jax.jit(erasing.erase, static_argnums=3)
    result = {mode: np.asarray(erase(keys, images, boxes, mode)) for mode in erasing.MODES}
    return result | {"elsewhere": np.asarray(jax.jit(erasing._erase_images)(keys, images, boxes))}


def test_only_the_boxes_change(erased):
    for values in erased.values():
        assert np.all(values[1] == 9)
        changed = np.any(values[0] != 9, axis=-1)
        assert changed[2:12, 3:33].all() and changed.sum() == 10 * 30
        assert np.any(values[3] != 9, axis=-1).sum() == 3 * 2 + 13 * 4 - 1


def test_fills(erased):
    assert np.all(erased["const"][2] == 0)
    noise = erased["pixel"][2]
    assert len(np.unique(noise)) > 3000
    assert abs(noise.mean()) < 0.07 and abs(noise.std() - 1) < 0.05
    colors = erased["rand"][2].reshape(-1, 3)
    assert np.all(colors == colors[0]) and len(set(colors[0].tolist())) == 3
    assert not np.any(erased["rand"][0][3, 4] == colors[0])  # another image, another color
    first, second = erased["rand"][3][5, 7], erased["rand"][3][10, 10]
    assert not np.any(first == second) and np.all(erased["rand"][3][7, 8] == second)  # the later box covers


def test_accelerators_give_the_same_noise(erased):
    """A CPU generates noise only for the rows of boxes, other devices for all rows."""
    np.testing.assert_allclose(erased["elsewhere"], erased["pixel"], rtol=1e-6, atol=1e-6)


def test_unknown_mode():
    with pytest.raises(ValueError, match="'gauss' is not one of pixel, rand, const"):
        erasing.erase(jax.random.split(jax.random.key(0), 1), jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 1, 4)), "gauss")
