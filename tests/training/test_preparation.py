import json

from ml_collections import ConfigDict

from deit_jax.training.preparation import common_facts, open_run
from deit_jax.training.record import claim_workdir
from tests.tiny import tiny_config


def facts_of(place, **changes):
    config = tiny_config(**changes)
    fields = {"source": "folder", "name": "", "path": f"{place}/v2", "split": "", "labels": f"{place}/real.json"}
    config.evaluation.extra = ConfigDict({"imagenet-v2": fields})
    config.data.path, config.parallel.compilation_cache = f"{place}/data", f"{place}/cache"
    return common_facts(config)


def test_places_may_differ_between_processes_and_nothing_else():
    here = facts_of("/here")
    assert facts_of("/there", data__num_threads=7, data__num_workers=2) == here
    assert here["config.evaluation.extra.imagenet-v2.source"] == "folder" and "jax" in here
    other = facts_of("/here", optimizer__eps=1e-7)
    assert {name for name in here if here[name] != other[name]} == {"config.optimizer.eps"}


def test_a_run_of_an_earlier_version_goes_on_with_its_own_numerics(tmp_path):
    config = tiny_config()
    opened = open_run(config, tmp_path)
    assert opened.config is config and opened.config.model.drop_dtype == "float32"
    claim_workdir(tmp_path, config, opened.plan, opened.identity)
    record = json.loads((tmp_path / "config.json").read_text())
    for field in ("drop_dtype", "residual_dtype", "regnet_init"):
        del record["config"]["model"][field]
    (tmp_path / "config.json").write_text(json.dumps(record))
    resumed = open_run(config, tmp_path).config
    assert (resumed.model.drop_dtype, resumed.model.residual_dtype) == ("compute", "compute")
    assert config.model.drop_dtype == "float32"  # the caller's own is left alone
