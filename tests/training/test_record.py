import dataclasses
import json
import re
import tarfile

import pytest

from deit_jax.config import BEFORE_IT_EXISTED, OPTIONS, ConfigError, default_config, recorded_config
from deit_jax.config_check import validate
from deit_jax.data.identity import Identity, Images
from deit_jax.reporting.fields import flat
from deit_jax.training.plan import resolve
from deit_jax.training.record import as_begun, check_workdir, claim_workdir, read_config, recorded_mixing
from tests.end_to_end.commands import ROOT
from tests.tiny import tiny_config, tiny_teacher_config

DATA = Identity(("a", "b"), Images(10_000, "0a"), Images(90, "0b"))


def claim(workdir, config, data=DATA):
    """Check and claim a workdir as the trainer does; returns the steps of an epoch."""
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


def test_the_same_run_may_go_on_and_another_may_not(tmp_path):
    claim(tmp_path, tiny_config())
    claim(tmp_path, tiny_config(log__every_steps=7))
    with pytest.raises(ConfigError, match=r"differs in optimizer\.eps, train\.batch_size;"):
        claim(tmp_path, tiny_config(optimizer__eps=1e-7, train__batch_size=16))


def test_what_a_missing_field_means_does_not_follow_its_default(tmp_path, monkeypatch, capsys):
    """Of a run that began before a field existed, and of one that began before its default moved to another value."""
    claim(tmp_path, tiny_config())
    edit(tmp_path, lambda config: (config["model"].pop("drop_dtype"), config["distillation"].pop("kl_mean")))
    for _ in range(2):  # every start of it
        record = check_workdir(tmp_path, tiny_config(), DATA)
        config = as_begun(tiny_config(), record)
        assert config.model.drop_dtype == "compute" and config.distillation.kl_mean == "elements"
        assert config.is_locked and "as it computed: config.model.drop_dtype=compute\n" in capsys.readouterr().out
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


def test_a_run_of_this_version_is_as_it_is_configured(tmp_path, capsys):
    claim(tmp_path, tiny_config(model__drop_dtype="compute"))
    with pytest.raises(ConfigError, match=r"differs in model\.drop_dtype;"):  # it is recorded, so it has to be given
        claim(tmp_path, tiny_config())
    config = tiny_config(model__drop_dtype="compute")
    assert as_begun(config, check_workdir(tmp_path, config, DATA)) is config and as_begun(config, None) is config
    assert read_config(tmp_path)["config"]["model"]["drop_dtype"] == "compute" and capsys.readouterr().out == ""


def test_a_missing_field_without_effect_is_recorded_as_it_is_now(tmp_path):
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


def test_every_field_that_a_workdir_may_lack_has_a_meaning_there():
    """Of the first version's workdir; whoever adds a field declares what its absence means."""
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


def test_the_mixing_groups_that_a_run_began_with_stay(tmp_path):
    """Whether they were given, as versions before 0.3 recorded them, or followed from the batch."""
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
        # Another bound would give other groups to a new run.
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
    refused(tmp_path, renamed, "10,000 training images as before, but not the same ones")

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
