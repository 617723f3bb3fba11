from ml_collections import ConfigDict

from deit_jax.training.preparation import common_facts
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
