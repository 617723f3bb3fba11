import os

from ml_collections import ConfigDict
from PIL import Image

from deit_jax.data import folder
from deit_jax.evaluation.extra import open_extra_sets
from tests.tiny import tiny_config


def test_the_lists_of_folders_are_kept_where_the_caller_says(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "SMALLEST_INDEXED", 1)
    for name in "ab":
        (tmp_path / "set" / "val" / name).mkdir(parents=True)
        Image.new("RGB", (3, 2)).save(tmp_path / "set" / "val" / name / "0.png")
    for path, _, _ in os.walk(tmp_path / "set"):
        os.utime(path, (1e9, 1e9))  # a folder that has just changed is not indexed
    config = tiny_config(data__index=str(tmp_path / "configured"))
    entry = {"source": "folder", "name": "", "path": str(tmp_path / "set"), "split": "validation", "labels": ""}
    config.evaluation.extra = ConfigDict({"further": entry})
    for index, place in ((None, "configured"), (str(tmp_path / "shared"), "shared")):
        sources = open_extra_sets(config, ("a", "b"), strict=True, index=index)
        assert len(sources["further"]) == 2 and len(list((tmp_path / place).iterdir())) == 1
