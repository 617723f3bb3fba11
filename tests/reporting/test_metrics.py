import json
import math

from deit_jax.reporting.metrics import MetricsFile, numbers, read_rows, write_json


def test_json_files_are_replaced_whole(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2} and list(tmp_path.iterdir()) == [path]


def test_only_numbers_of_a_row_are_numbers():
    assert numbers({"step": 3, "a": 1, "b": 0.5, "c": "text", "d": None, "e": True}) == {"a": 1.0, "b": 0.5}


def refuse(name):
    raise ValueError(f"{name} is not JSON")


def test_numbers_that_are_not_finite_are_null_and_counted(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": [1.5, math.nan, (math.inf,)], "b": {"c": -math.inf}, "d": None, "e": True})
    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content == {"a": [1.5, None, [None]], "b": {"c": None}, "d": None, "e": True, "nonfinite_values": 3}
    write_json(path, [math.nan, 1])
    assert json.loads(path.read_text(), parse_constant=refuse) == [None, 1]


def test_rows_with_null_are_read_as_nan_and_written_again(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.begin(0, [])
    file.write(1, {"train/loss": math.nan, "train/grad_norm": 2.0})
    file.write(2, {"train/loss": 1.0})
    file.close(0)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert math.isnan(rows[0].pop("train/loss")) and rows == [
        {"step": 1, "train/grad_norm": 2.0},
        {"step": 2, "train/loss": 1.0},
    ]
    before = (tmp_path / "metrics.jsonl").read_bytes()
    file.begin(2, read_rows(tmp_path / "metrics.jsonl"))
    file.close(0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    for line in before.decode().splitlines():
        json.loads(line, parse_constant=refuse)
