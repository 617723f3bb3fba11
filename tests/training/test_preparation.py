import json

import pytest
from ml_collections import ConfigDict

from deit_jax.cache_folder import shared_cache_folder
from deit_jax.config import ConfigError
from deit_jax.training.preparation import common_facts, open_run, with_shared_index
from deit_jax.training.record import claim_workdir
from tests.tiny import tiny_config


def facts_of(place, **changes):
    config = tiny_config(**changes)
    fields = {"source": "folder", "name": "", "path": f"{place}/v2", "split": "", "labels": f"{place}/real.json"}
    config.evaluation.extra = ConfigDict({"imagenet-v2": fields})
    config.data.path, config.parallel.compilation_cache = f"{place}/data", f"{place}/cache"
    return common_facts(config)


def test_only_paths_and_reading_settings_may_differ_between_processes():
    here = facts_of("/here")
    assert facts_of("/there", data__num_threads=7, data__num_workers=2) == here
    assert here["config.evaluation.extra.imagenet-v2.source"] == "folder" and "jax" in here
    other = facts_of("/here", optimizer__eps=1e-7)
    assert {name for name in here if here[name] != other[name]} == {"config.optimizer.eps"}


def test_a_run_of_an_earlier_version_keeps_its_numerics(tmp_path):
    config = tiny_config()
    opened = open_run(config, tmp_path)
    assert opened.config is config and opened.config.model.drop_dtype == "float32"
    claim_workdir(tmp_path, config, opened.plan, opened.identity)
    record = json.loads((tmp_path / "config.json").read_text())
    for field in ("drop_dtype", "residual_dtype", "regnet_init", "attention", "gradient_dtype", "patch_keep_rate"):
        del record["config"]["model"][field]
    del record["config"]["teacher"]["fused"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    resumed = open_run(config, tmp_path).config
    assert (resumed.model.drop_dtype, resumed.model.residual_dtype) == ("compute", "compute")
    assert (config.teacher.fused, resumed.teacher.fused) == (True, False)
    assert (config.model.attention, resumed.model.attention) == ("auto", "xla")
    assert config.model.drop_dtype == "float32"  # the caller's configuration is not modified


def test_a_warning_says_that_the_evaluation_images_are_training_images(tmp_path, capsys):
    open_run(tiny_config(data__train_split="train[:90%]", data__eval_split="train[90%:]"), tmp_path / "parts")
    assert "too good" not in capsys.readouterr().out
    open_run(tiny_config(data__eval_split="train[90%:]"), tmp_path / "overlap")
    assert "eval_split=train[90%:] has images of config.data.train_split=train, on" in capsys.readouterr().out


@pytest.mark.parametrize("left", ["checkpoints/4/default", "metrics.jsonl"])
def test_a_run_that_lost_its_record_is_refused(tmp_path, left):
    if left.endswith(".jsonl"):
        (tmp_path / left).write_text('{"step": 4, "train/loss": 1.0}\n')
    else:
        (tmp_path / left).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"/config\.json is missing although the run has trained: restore it, or use"):
        open_run(tiny_config(), tmp_path)


def test_processes_share_folder_indices_unless_others_can_write_them(tmp_path, monkeypatch):
    data, shared = tiny_config().data, shared_cache_folder(tmp_path / "runs" / "one")
    assert with_shared_index(data, shared).index == "auto"
    monkeypatch.setattr("jax.process_count", lambda: 2)
    assert with_shared_index(data, shared).index == str(shared) and data.index == "auto"
    named = tiny_config(data__index="/named").data
    assert with_shared_index(named, shared).index == "/named"
    shared.mkdir(parents=True)
    for mode, index in ((0o755, str(shared)), (0o770, "auto"), (0o777, "auto")):
        shared.chmod(mode)
        assert with_shared_index(data, shared).index == index


def test_a_run_uses_the_shared_folder_next_to_its_workdir_or_a_given_one(tmp_path):
    assert open_run(tiny_config(), tmp_path / "run").shared == shared_cache_folder(tmp_path / "run")
    assert open_run(tiny_config(), tmp_path / "run" / "teacher", tmp_path / "x").shared == tmp_path / "x"
