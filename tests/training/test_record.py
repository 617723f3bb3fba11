import json

import pytest

from deit_jax.config import ConfigError
from deit_jax.training.plan import resolve
from deit_jax.training.record import claim_workdir, read_config
from tests.tiny import tiny_config


def claim(workdir, config):
    claim_workdir(workdir, config, resolve(config, num_images=10_000, data_classes=10), class_names=("a", "b"))


def edit(workdir, change):
    record = read_config(workdir)
    change(record["config"])
    (workdir / "config.json").write_text(json.dumps(record))


def test_the_same_run_may_go_on_and_another_may_not(tmp_path):
    claim(tmp_path, tiny_config())
    claim(tmp_path, tiny_config(log__every_steps=7))
    with pytest.raises(ConfigError, match=r"differs in optimizer\.eps, train\.batch_size;"):
        claim(tmp_path, tiny_config(optimizer__eps=1e-7, train__batch_size=16))


def test_a_workdir_of_an_earlier_version_goes_on_with_the_defaults_of_new_fields(tmp_path):
    claim(tmp_path, tiny_config())
    edit(tmp_path, lambda config: config["distillation"].pop("kl_mean"))
    claim(tmp_path, tiny_config())
    with pytest.raises(ConfigError, match=r"differs in distillation\.kl_mean;"):
        claim(tmp_path, tiny_config(distillation__kl_mean="batch"))


@pytest.mark.parametrize("content", ["{}", "[1]", '{"architecture": "deit"}'])
def test_another_programs_config_is_no_record(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="is not that of a training run"):
        read_config(tmp_path)


def test_a_workdir_of_a_later_version_is_refused_by_its_number(tmp_path):
    claim(tmp_path, tiny_config())
    record = read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(record | {"format": 99, "version": "7.8.9"}))
    with pytest.raises(ConfigError, match=r"was made by deit_jax 7\.8\.9, which this one \(\d"):
        claim(tmp_path, tiny_config())


def test_the_remedy_for_losses_that_are_not_finite_may_change(tmp_path):
    claim(tmp_path, tiny_config())
    claim(tmp_path, tiny_config(on_nonfinite="rollback"))
    assert read_config(tmp_path)["config"]["on_nonfinite"] == "rollback"
