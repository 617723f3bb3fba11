import dataclasses
import json
import re
import tarfile

import pytest

from deit_jax.config import OPTIONS, ConfigError, default_config
from deit_jax.config_check import validate
from deit_jax.config_model import check_model
from deit_jax.config_record import BEFORE_IT_EXISTED, recorded_config
from deit_jax.data.identity import Identity, Images
from deit_jax.reporting.fields import flat
from deit_jax.training.plan import resolve
from deit_jax.training.record import as_begun, check_workdir, claim_workdir, read_config, recorded_mixing
from tests.end_to_end.commands import ROOT
from tests.tiny import tiny_config, tiny_teacher_config

DATA = Identity(("a", "b"), Images(10_000, "0a"), Images(90, "0b"))


def claim(workdir, config, data=DATA):
    """Checks and claims a workdir as the trainer does; returns the steps per epoch."""
    record = check_workdir(workdir, config, data)
    steps = None if record is None else record["resolved"]["steps_per_epoch"]
    mixing = None if record is None else recorded_mixing(record)
    images, classes = data.train.images, len(data.class_names)
    plan = resolve(config, num_images=images, data_classes=classes, epoch_steps=steps, mixing=mixing)
    claim_workdir(workdir, config, plan, data, checked=record)
    return plan.steps_per_epoch


def edit(workdir, change):
    record = read_config(workdir)
    change(record["config"])
    (workdir / "config.json").write_text(json.dumps(record))


def test_the_same_configuration_may_resume_and_another_may_not(tmp_path):
    claim(tmp_path, tiny_config())
    claim(tmp_path, tiny_config(log__every_steps=7))
    with pytest.raises(ConfigError, match=r"differs in optimizer\.eps, train\.batch_size;"):
        claim(tmp_path, tiny_config(optimizer__eps=1e-7, train__batch_size=16))


def test_a_missing_field_keeps_its_meaning_if_its_default_changes(tmp_path, monkeypatch, capsys):
    """For a run started before a field existed, and for one started before its default changed."""
    claim(tmp_path, tiny_config())
    edit(tmp_path, lambda config: (config["model"].pop("drop_dtype"), config["distillation"].pop("kl_mean")))
    for _ in range(2):  # at every start
        record = check_workdir(tmp_path, tiny_config(), DATA)
        config = as_begun(tiny_config(), record)
        assert config.model.drop_dtype == "compute" and config.distillation.kl_mean == "elements"
        assert config.is_locked and "keeps its settings: config.model.drop_dtype=compute\n" in capsys.readouterr().out
        claim(tmp_path, tiny_config())
        recorded = read_config(tmp_path)["config"]
        assert "drop_dtype" not in recorded["model"] and "kl_mean" not in recorded["distillation"]
        assert recorded["model"]["remat"] == "none"
    claim(tmp_path, tiny_config(model__drop_dtype="compute"))
    with pytest.raises(ConfigError, match=r"differs in distillation\.kl_mean;"):
        claim(tmp_path, tiny_config(distillation__kl_mean="batch"))
    monkeypatch.setitem(BEFORE_IT_EXISTED, "distillation.kl_mean", "batch")  # as if the default had been that
    assert as_begun(tiny_config(), check_workdir(tmp_path, tiny_config(), DATA)).distillation.kl_mean == "batch"
    assert recorded_config(read_config(tmp_path)).distillation.kl_mean == "batch"


def test_a_run_with_the_earlier_default_of_attention_keeps_it(tmp_path):
    claim(tmp_path, tiny_config(model__attention="xla"))
    for _ in range(2):  # at every start
        record = check_workdir(tmp_path, tiny_config(), DATA)
        config = as_begun(tiny_config(), record)
        assert config.model.attention == "xla"
        plan = resolve(config, num_images=10_000, data_classes=2)
        claim_workdir(tmp_path, config, plan, DATA, checked=record, attention="xla")
    assert read_config(tmp_path)["config"]["model"]["attention"] == "xla"
    with pytest.raises(ConfigError, match=r"differs in model\.attention;"):
        claim(tmp_path, tiny_config(model__attention="dot_product"))


@pytest.mark.parametrize("recorded", ["auto", "dot_product"])
def test_another_attention_is_a_different_run(tmp_path, recorded):
    claim(tmp_path, tiny_config(model__attention=recorded))
    other = "xla" if recorded == "auto" else "auto"
    with pytest.raises(ConfigError, match=r"differs in model\.attention;"):
        claim(tmp_path, tiny_config(model__attention=other))


def test_a_convnet_may_be_resumed_after_the_default_of_attention_changed(tmp_path):
    """Which has none, but recorded the default."""
    earlier, config = tiny_teacher_config(), tiny_teacher_config()
    earlier.model.attention = "xla"
    claim(tmp_path, earlier)
    assert as_begun(config, check_workdir(tmp_path, config, DATA)).model.attention == "auto"
    check_model(earlier)


def test_the_attention_of_the_first_start_stays_recorded(tmp_path):
    plan = resolve(tiny_config(), num_images=10_000, data_classes=2)
    for attention in ("pallas", "xla"):
        record = check_workdir(tmp_path, tiny_config(), DATA)
        claim_workdir(tmp_path, tiny_config(), plan, DATA, checked=record, attention=attention)
    assert read_config(tmp_path)["resolved"]["attention"] == "pallas"


def test_a_run_of_this_version_uses_its_configuration(tmp_path, capsys):
    claim(tmp_path, tiny_config(model__drop_dtype="compute"))
    with pytest.raises(ConfigError, match=r"differs in model\.drop_dtype;"):  # it is recorded, so it must be set
        claim(tmp_path, tiny_config())
    config = tiny_config(model__drop_dtype="compute")
    assert as_begun(config, check_workdir(tmp_path, config, DATA)) is config and as_begun(config, None) is config
    assert read_config(tmp_path)["config"]["model"]["drop_dtype"] == "compute" and capsys.readouterr().out == ""


def test_a_missing_field_without_effect_is_recorded_with_its_present_value(tmp_path):
    config = tiny_teacher_config()
    claim(tmp_path, config)
    edit(
        tmp_path, lambda config: [config["model"].pop(name) for name in ("residual_dtype", "regnet_init", "drop_dtype")]
    )
    claim(tmp_path, config)
    recorded = read_config(tmp_path)["config"]["model"]
    assert "residual_dtype" in recorded and not {"regnet_init", "drop_dtype"} & set(
        recorded
    )  # a convnet has no such stream


def test_every_field_that_a_record_may_lack_has_a_meaning():
    """Compared with the first version's workdir: a new field must declare what its absence means."""
    with tarfile.open(ROOT / "tests/golden/workdir_0.1.0.tar.xz") as archive:
        recorded = json.load(archive.extractfile("workdir/config.json"))["config"]
    assert recorded["model"]["overrides"]["depth"] == 2
    there = {name for name, _ in flat(recorded)}
    there |= {"model.overrides", "teacher.overrides"}  # whose fields are the model's
    missing = {name for name in OPTIONS if name not in there}
    assert {"model.drop_dtype", "data.index"} <= missing
    changing = {name for name in missing if not name.startswith(("log.", "parallel.", "checkpoint."))}
    assert changing <= set(BEFORE_IT_EXISTED) <= set(OPTIONS)
    config = default_config()
    config.update_from_flattened_dict(BEFORE_IT_EXISTED)
    validate(config)


def mixing_of(workdir):
    return recorded_mixing(read_config(workdir))


def test_a_run_keeps_its_first_mixing_groups(tmp_path):
    """Both configured ones, as recorded by versions before 0.3, and ones derived from the batch."""
    for begun in ("given", "derived"):
        workdir = tmp_path / begun
        given = {"augment__group_size": 2, "augment__groups_per_block": 8} if begun == "given" else {}
        claim(workdir, tiny_config(**given))
        sizes = (2, 8) if given else (4, 4)
        assert mixing_of(workdir) == sizes
        if given:
            record = read_config(workdir)
            for name in ("group_size", "groups_per_block"):
                del record["resolved"][name]
            del record["config"]["augment"]["max_group_size"]
            (workdir / "config.json").write_text(json.dumps(record))
        # A new run with another bound would have other groups.
        claim(workdir, tiny_config(augment__max_group_size=8))
        assert mixing_of(workdir) == sizes
        claim(workdir, tiny_config(augment__group_size=sizes[0], augment__groups_per_block=sizes[1]))
        claim(workdir, tiny_config())
        assert mixing_of(workdir) == sizes
        with pytest.raises(ConfigError, match=r"differs in augment\.group_size;"):
            claim(workdir, tiny_config(augment__group_size=8))
        with pytest.raises(ConfigError, match=r"differs in augment\.groups_per_block;"):
            claim(workdir, tiny_config(augment__groups_per_block=16))


@pytest.mark.parametrize("content", ["{}", "[1]", '{"architecture": "deit"}'])
def test_the_config_json_of_another_program_raises(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="is not the record of a training run"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("part", "value", "named"),
    [
        ("resolved", {}, "resolved"), ("resolved", [], "resolved"), ("config", [], "config"), ("format", "x", "format"),
        ("resolved.steps_per_epoch", 0, "steps_per_epoch"), ("resolved.class_names", 7, "class_names"),
        ("resolved.data", None, "data"), ("resolved.data.train", 7, "data"), ("resolved.data.train", {"digest": "a"}, "data"),
    ],
)  # fmt: skip
def test_an_invalid_part_of_a_record_is_named(tmp_path, part, value, named):
    claim(tmp_path, tiny_config())
    record = read_config(tmp_path)
    *path, name = part.split(".")
    inner = record
    for step in path:
        inner = inner[step]
    inner[name] = value
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=rf"config\.json is damaged \(invalid {named}\)"):
        read_config(tmp_path)


def test_a_workdir_of_a_later_version_raises(tmp_path):
    claim(tmp_path, tiny_config())
    record = read_config(tmp_path)
    later = {"format": 99, "version": "7.8.9", "resolved": {}}  # without what this version needs
    (tmp_path / "config.json").write_text(json.dumps(record | later))
    for read in (lambda: claim(tmp_path, tiny_config()), lambda: read_config(tmp_path)):
        with pytest.raises(ConfigError, match=r"was made by deit_jax 7\.8\.9, whose format this version \(\d"):
            read()


def test_an_option_that_the_model_lacks_may_be_corrected(tmp_path):
    config = tiny_teacher_config()
    claim(tmp_path, config)
    edit(tmp_path, lambda config: config["model"].update(remat="full"))  # an earlier version ignored it
    claim(tmp_path, config)
    assert read_config(tmp_path)["config"]["model"]["remat"] == "none"


def test_on_nonfinite_may_change(tmp_path):
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
def test_other_classes_raise(tmp_path, names, shown):
    claim(tmp_path, tiny_config())
    data = dataclasses.replace(DATA, class_names=names)
    for options in ({}, {"data__on_change": "continue"}):
        refused(tmp_path, data, re.escape(f"was trained on other classes ({shown})"), **options)


def test_other_images_raise_unless_on_change_is_continue(tmp_path, capsys):
    steps = claim(tmp_path, tiny_config())
    more = dataclasses.replace(DATA, train=Images(13_000, "0c"))
    refused(tmp_path, more, "10,000 training images then, 13,000 now.*--config.data.on_change=continue")
    renamed = dataclasses.replace(DATA, train=Images(10_000, "0d"))
    refused(tmp_path, renamed, "10,000 training images as before, but not the same ones")

    assert claim(tmp_path, tiny_config(data__on_change="continue"), more) == steps
    assert "continues with the present data" in capsys.readouterr().out
    assert claim(tmp_path, tiny_config(), more) == steps  # records the new images and keeps the epoch length
    assert capsys.readouterr().out == ""
    refused(tmp_path, DATA, "13,000 training images then, 10,000 now")
    few = dataclasses.replace(DATA, train=Images(20, "0e"))  # fewer than a batch
    assert claim(tmp_path, tiny_config(data__on_change="continue"), few) == steps


def test_other_evaluation_images_raise_unless_their_fields_change(tmp_path):
    claim(tmp_path, tiny_config())
    fewer = dataclasses.replace(DATA, evaluation=Images(80, "0c"))
    refused(tmp_path, fewer, "90 evaluation images then, 80 now")
    claim(tmp_path, tiny_config(data__max_eval_images=80), fewer)
    claim(tmp_path, tiny_config(data__max_eval_images=80), fewer)


def test_without_recorded_images_the_steps_per_epoch_are_compared(tmp_path):
    claim(tmp_path, tiny_config())
    record = read_config(tmp_path)
    del record["resolved"]["data"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    refused(tmp_path, dataclasses.replace(DATA, train=Images(8_000, "")), "312 steps per epoch then, 248 now")
    claim(tmp_path, tiny_config())
    assert read_config(tmp_path)["resolved"]["data"]["train"] == {"images": 10_000, "digest": "0a"}


def test_a_run_started_meanwhile_is_not_overwritten(tmp_path):
    config = tiny_config()
    plan = resolve(config, num_images=10_000, data_classes=2)
    assert check_workdir(tmp_path, config, DATA) is None
    claim(tmp_path, tiny_config(seed=1))
    with pytest.raises(ConfigError, match="another run was started in"):
        claim_workdir(tmp_path, config, plan, DATA, checked=None)
    assert read_config(tmp_path)["config"]["seed"] == 1
