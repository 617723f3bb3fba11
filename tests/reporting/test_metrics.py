import json
import math

from deit_jax.reporting.metrics import MetricsFile, numbers, read_metrics


def test_only_numbers_of_a_row_are_numbers():
    assert numbers({"step": 3, "a": 1, "b": 0.5, "c": "text", "d": None, "e": True}) == {"a": 1.0, "b": 0.5}


def refuse(name):
    raise ValueError(f"{name} is not JSON")


def test_rows_with_null_are_read_as_nan_and_written_again(tmp_path):
    file = MetricsFile(tmp_path)
    file.begin(0, [])
    file.write(1, {"train/loss": math.nan, "train/grad_norm": 2.0})
    file.write(2, {"train/loss": 1.0})
    file.close(0)
    rows = read_metrics(tmp_path)
    assert math.isnan(rows[0].pop("train/loss")) and rows == [
        {"step": 1, "train/grad_norm": 2.0},
        {"step": 2, "train/loss": 1.0},
    ]
    before = (tmp_path / "metrics.jsonl").read_bytes()
    file.begin(2, read_metrics(tmp_path))
    file.close(0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    for line in before.decode().splitlines():
        json.loads(line, parse_constant=refuse)


def test_rows_end_before_the_first_damaged_line(tmp_path):
    for damage in (b"\xff", b"\0", b'{"step": 2, "tr'):
        (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "a": 0.5}\n' + damage + b'\n{"step": 3, "a": 1.0}\n')
        assert read_metrics(tmp_path) == [{"step": 1, "a": 0.5}]
    assert read_metrics(tmp_path / "nowhere") == []
