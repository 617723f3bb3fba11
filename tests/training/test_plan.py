import pytest

from deit_jax.config import ConfigError
from deit_jax.training.plan import resolve
from tests.tiny import paper_config, tiny_config


def test_plan_of_the_papers_imagenet_run():
    plan = resolve(paper_config(), num_images=1_281_167, data_classes=1000)
    assert plan.steps_per_epoch == 1251  # 1,281,024 samples
    assert plan.total_steps == 300 * 1251
    assert plan.peak_learning_rate == pytest.approx(1e-3)
    assert plan.image_size == 224 and plan.num_classes == 1000


@pytest.mark.parametrize("batch_size", [64, 96, 512, 2048])
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_base_patch16_224"])
def test_any_batch_has_its_mixing_groups(name, batch_size):
    config = paper_config()
    config.model.name, config.train.batch_size = name, batch_size
    config.augment.max_group_size = 64 if "base" in name else 256
    order = resolve(config, num_images=1_281_167, data_classes=1000).order
    assert order.groups_per_block == 4 and order.group_size == min(batch_size // 4, config.augment.max_group_size)
    kept = resolve(config, num_images=1_281_167, data_classes=1000, mixing=(8, 4)).order
    assert (kept.group_size, kept.groups_per_block) == (8, 4)
    config.augment.group_size = 16
    order = resolve(config, num_images=1_281_167, data_classes=1000).order
    assert (order.group_size, order.groups_per_block) == (16, 3 if batch_size == 96 else 4)


def test_mixing_groups_that_do_not_divide_the_batch_raise():
    config = tiny_config(augment__group_size=6)
    with pytest.raises(ConfigError, match=r"^config\.train\.batch_size=32 .*augment\.group_size=6 cannot"):
        resolve(config, num_images=10_000, data_classes=10)
    with pytest.raises(ConfigError, match=r"batch_size=32 is not a multiple of .* 6 \* 4 = 24"):
        resolve(tiny_config(augment__group_size=6, augment__groups_per_block=4), num_images=10_000, data_classes=10)


def test_sizes_follow_overrides():
    plan = resolve(tiny_config(), num_images=10_000, data_classes=10)
    assert (plan.image_size, plan.num_classes, plan.total_steps, plan.compute_dtype) == (28, 10, 4, "float32")
    assert plan.checkpoint_every == plan.steps_per_epoch
    assert resolve(tiny_config(checkpoint__every_steps=7), num_images=10_000, data_classes=10).checkpoint_every == 7


def test_a_384_model_is_trained_at_384_pixels():
    config = tiny_config(model__name="deit_base_patch16_384", image_size=None)
    assert resolve(config, num_images=10_000, data_classes=10).image_size == 384


def test_data_that_does_not_fit_raises():
    with pytest.raises(ConfigError, match=r"num_classes=5.*10 classes"):
        resolve(tiny_config(num_classes=5), num_images=10_000, data_classes=10)
    with pytest.raises(ConfigError, match="20"):
        resolve(tiny_config(), num_images=20, data_classes=10)
    with pytest.raises(ConfigError, match="deit_tiny"):
        resolve(tiny_config(model__name="deit_tini_patch16_224", image_size=None), num_images=10_000, data_classes=10)
