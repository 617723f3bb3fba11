import json

from deit_jax.reporting.metrics import numbers, write_json


def test_json_files_are_replaced_whole(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2} and list(tmp_path.iterdir()) == [path]


def test_only_numbers_of_a_row_are_numbers():
    assert numbers({"step": 3, "a": 1, "b": 0.5, "c": "text", "d": None, "e": True}) == {"a": 1.0, "b": 0.5}
