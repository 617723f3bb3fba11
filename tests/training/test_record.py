import dataclasses
import json
import re

import pytest

from deit_jax.config import ConfigError
from deit_jax.data.identity import Identity, Images
from deit_jax.training.plan import resolve
from deit_jax.training.record import check_workdir, claim_workdir, read_config
from tests.tiny import tiny_config, tiny_teacher_config

DATA = Identity(("a", "b"), Images(10_000, "0a"), Images(90, "0b"))


def claim(workdir, config, data=DATA):
    """Check and claim a workdir as the trainer does; returns the steps of an epoch."""
    record = check_workdir(workdir, config, data)
    steps = None if record is None else record["resolved"]["steps_per_epoch"]
    plan = resolve(config, num_images=data.train.images, data_classes=len(data.class_names), epoch_steps=steps)
    claim_workdir(workdir, config, plan, data, checked=record)
    return plan.steps_per_epoch


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


@pytest.mark.parametrize(
    ("part", "value", "named"),
    [
        ("resolved", {}, "resolved"), ("resolved", [], "resolved"), ("config", [], "config"), ("format", "x", "format"),
        ("resolved.steps_per_epoch", 0, "steps_per_epoch"), ("resolved.class_names", 7, "class_names"),
        ("resolved.data", None, "data"), ("resolved.data.train", 7, "data"), ("resolved.data.train", {"digest": "a"}, "data"),
    ],
)  # fmt: skip
def test_a_record_that_was_edited_is_damaged_and_named(tmp_path, part, value, named):
    claim(tmp_path, tiny_config())
    record = read_config(tmp_path)
    *path, name = part.split(".")
    inner = record
    for step in path:
        inner = inner[step]
    inner[name] = value
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=rf"config\.json is damaged \(its {named} is not what a run writes\)"):
        read_config(tmp_path)


def test_a_workdir_of_a_later_version_is_refused_by_its_number(tmp_path):
    claim(tmp_path, tiny_config())
    record = read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(record | {"format": 99, "version": "7.8.9"}))
    with pytest.raises(ConfigError, match=r"was made by deit_jax 7\.8\.9, which this one \(\d"):
        claim(tmp_path, tiny_config())


def test_an_option_that_the_model_lacks_may_be_corrected(tmp_path):
    config = tiny_teacher_config()
    claim(tmp_path, config)
    edit(tmp_path, lambda config: config["model"].update(remat="full"))  # an earlier version ignored it
    claim(tmp_path, config)
    assert read_config(tmp_path)["config"]["model"]["remat"] == "none"


def test_the_remedy_for_losses_that_are_not_finite_may_change(tmp_path):
    claim(tmp_path, tiny_config())
    claim(tmp_path, tiny_config(on_nonfinite="rollback"))
    assert read_config(tmp_path)["config"]["on_nonfinite"] == "rollback"


def refused(workdir, data, match, **changes):
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(ConfigError, match=match) as error:
        claim(workdir, tiny_config(**changes), data)
    assert "\n" not in str(error.value) and (workdir / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("a", "z"), "new: 'z'; missing: 'b'"),
        (("a", "b", "c"), "new: 'c'"),
        (("a",), "missing: 'b'"),
        (("b", "a"), "the same names in another order, class 0 is 'b', not 'a'"),
    ],
)
def test_other_classes_are_refused(tmp_path, names, shown):
    claim(tmp_path, tiny_config())
    data = dataclasses.replace(DATA, class_names=names)
    for options in ({}, {"data__on_change": "continue"}):
        refused(tmp_path, data, re.escape(f"was trained on other classes ({shown})"), **options)


def test_other_images_are_refused_unless_the_run_may_go_on_with_them(tmp_path, capsys):
    steps = claim(tmp_path, tiny_config())
    more = dataclasses.replace(DATA, train=Images(13_000, "0c"))
    refused(tmp_path, more, "10,000 training images then, 13,000 now.*--config.data.on_change=continue")
    renamed = dataclasses.replace(DATA, train=Images(10_000, "0d"))
    refused(tmp_path, renamed, "10,000 training images as then, but not the same ones")

    assert claim(tmp_path, tiny_config(data__on_change="continue"), more) == steps
    assert "goes on with what is there now" in capsys.readouterr().out
    assert claim(tmp_path, tiny_config(), more) == steps  # the new images are recorded, the epochs stay as long
    assert capsys.readouterr().out == ""
    refused(tmp_path, DATA, "13,000 training images then, 10,000 now")
    few = dataclasses.replace(DATA, train=Images(20, "0e"))  # fewer than a batch
    assert claim(tmp_path, tiny_config(data__on_change="continue"), few) == steps


def test_other_evaluation_images_are_refused_unless_asked_for(tmp_path):
    claim(tmp_path, tiny_config())
    fewer = dataclasses.replace(DATA, evaluation=Images(80, "0c"))
    refused(tmp_path, fewer, "90 evaluation images then, 80 now")
    claim(tmp_path, tiny_config(data__max_eval_images=80), fewer)
    claim(tmp_path, tiny_config(data__max_eval_images=80), fewer)


def test_of_a_version_that_recorded_no_images_the_steps_of_an_epoch_count(tmp_path):
    claim(tmp_path, tiny_config())
    record = read_config(tmp_path)
    del record["resolved"]["data"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    refused(tmp_path, dataclasses.replace(DATA, train=Images(8_000, "")), "312 steps per epoch then, 248 now")
    claim(tmp_path, tiny_config())
    assert read_config(tmp_path)["resolved"]["data"]["train"] == {"images": 10_000, "digest": "0a"}


def test_a_run_that_began_in_between_is_not_overwritten(tmp_path):
    config = tiny_config()
    plan = resolve(config, num_images=10_000, data_classes=2)
    assert check_workdir(tmp_path, config, DATA) is None
    claim(tmp_path, tiny_config(seed=1))
    with pytest.raises(ConfigError, match="another run began in"):
        claim_workdir(tmp_path, config, plan, DATA, checked=None)
    assert read_config(tmp_path)["config"]["seed"] == 1
