"""benchmarks/on_device.py: its time limits with a fake worker, and all of its rows on a CPU."""

import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks import on_device
from deit_jax.models.attention import ATTENTIONS

SCRIPT = on_device.ROWS.with_name("on_device.py")
# Answers like the real worker, or fails as the row specifies.
STAND_IN = """
import json, os, sys, time
for line in sys.stdin:
    row = json.loads(line)
    known = {"images_per_second": 1234.5, "pid": os.getpid()} if row["part"] == "step" else {"platform": "gpu", "card": "a card"}
    print(json.dumps(known), flush=True)
    if row.get("do") == "hang":
        time.sleep(60)
    if row.get("do") == "die":
        sys.exit("Segmentation | fault")
    print(json.dumps({"status": "ok"} | row.get("answer", {})), flush=True)
"""


def measured(tmp_path, rows, minutes=1.0, command=(sys.executable, "-c", STAND_IN)):
    """Returns what `measure_all` writes, with the row of the machine first, and the reason if it ended early."""
    written, line = [], None
    worker = on_device.Worker(tmp_path / "log", command)
    try:
        on_device.measure_all(
            [{"part": "machine", "what": "machine", "tiny": False}, *rows], minutes, worker, written.append
        )
    except SystemExit as error:
        line = str(error)
    return written, line


def step(**fields):
    return {"part": "step", "what": "a step", "recipe": "small", "attention": "xla"} | fields


def test_a_row_that_fails_or_hangs_is_reported_and_the_others_continue(tmp_path, monkeypatch):
    monkeypatch.setitem(on_device.PARTS, "step", on_device.Part(end=400, most=16, least=0))  # 2 seconds of a minute
    error = {"answer": {"status": "error", "error": "ConfigError: odd tokens"}}
    rows = [step(), step(**error), step(do="die"), step(do="hang"), step()]
    (_, first, refused, died, hung, last), line = measured(tmp_path, rows)
    assert line is None
    assert [row["status"] for row in (first, refused, died, hung, last)] == [
        "ok",
        "error",
        "error",
        "not reached",
        "ok",
    ]
    assert died["error"] == "the process ended with status 1: Segmentation | fault"
    assert hung["note"] == "cut off after 2 s" and 1.9 < hung["seconds"] < 10 and hung["images_per_second"] == 1234.5
    assert first["pid"] == refused["pid"] == died["pid"] and len({died["pid"], hung["pid"], last["pid"]}) == 3

    text = on_device.table([row | {"run": "now"} for row in (first, refused, died, hung, last)])
    assert len(text.splitlines()) == 2 + 5 and text.startswith("| configs/deit.py: | attention |")
    assert "| 1,234 |" in text and "error; ConfigError: odd tokens" in text and "Segmentation / fault" in text


def test_everything_ends_in_time_and_unstarted_rows_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setitem(on_device.PARTS, "machine", on_device.Part(end=200, most=200, least=0))  # time to start Python
    start = time.monotonic()
    # Of three seconds the steps may use at most 2.5, and a single step 0.75.
    rows, line = measured(tmp_path, [step(do="hang") for _ in range(8)], minutes=3 / 60)
    assert time.monotonic() - start < 4 and line is None and len(rows) == 9
    assert [row["status"] for row in rows] == ["ok"] + 8 * ["not reached"]
    notes = [row["note"].split(" ")[0] for row in rows[1:]]
    assert set(notes) == {"cut", "no"} and notes == sorted(notes)
    assert {row["note"] for row in rows if row.get("note", "").startswith("no")} == {"no time left"}


def test_time_left_by_a_part_is_used_for_unstarted_rows(tmp_path, monkeypatch):
    monkeypatch.setitem(on_device.PARTS, "step", on_device.Part(end=0, most=100, least=0))
    rows = [step(), {"part": "quick start", "what": "quick start"}]
    written, _ = measured(tmp_path, rows)
    assert [row["part"] for row in written] == ["machine", "quick start", "step"]
    assert [row["status"] for row in written] == ["ok", "ok", "ok"]


def test_without_a_gpu_nothing_is_measured(tmp_path):
    stand_in = STAND_IN.replace('"gpu"', '"cpu"')
    rows, line = measured(tmp_path, [step()], command=(sys.executable, "-c", stand_in))
    assert line == "JAX finds no GPU here (it finds: a card); --tiny tests this script on a CPU"
    assert [row["status"] for row in rows] == ["ok", "not reached"]
    rows, line = measured(tmp_path, [step()], command=(sys.executable, "-c", "raise SystemExit('no driver')"))
    assert line == "JAX does not start here: the process ended with status 1: no driver"
    assert [row["status"] for row in rows] == ["error", "not reached"]


def test_missing_packages_are_reported_in_one_line_with_the_wheels(monkeypatch):
    assert on_device.missing_packages() is None
    monkeypatch.setitem(on_device.WHEELS, "no_such_package", "no-such-package")
    line = on_device.missing_packages()
    assert line.startswith("Python packages are missing: no_such_package. ") and "\n" not in line
    for name in on_device.WHEELS.values():
        assert name in line and (name == "no-such-package" or f"{name}==" in on_device.__doc__)


def test_every_attention_for_a_gpu_is_measured():
    assert set(on_device.ATTENTIONS) == set(ATTENTIONS) - {"auto", "pallas"}


@pytest.mark.long
def test_all_rows_on_a_cpu(tmp_path):
    """The real functions for every kind of row, at small sizes. cuDNN's attention needs a GPU."""
    path = tmp_path / "rows.jsonl"
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(SCRIPT), f"--output={path}", "--tiny"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row for row in map(json.loads, path.read_text().splitlines())}
    assert list(rows) == [row["what"] for row in on_device.all_rows(tiny=True)]
    for what, row in rows.items():
        if "cudnn" in what:
            assert (
                row["status"] == "error" and "computes on NVIDIA GPUs only" in row["error"] and "\n" not in row["error"]
            )
            continue
        assert row["status"] == "ok", row
        if row["part"] == "step":
            assert row["slowest"] <= row["images_per_second"] <= row["fastest"] and row["memory_gib"] > 0
            assert row["mfu"] is None and "topologies.py" in row["no_mfu"]  # a CPU's peak is not listed
            assert 2 < row["loss"] < 3 and (row["teacher"] is None) == ("distilled" not in what)
        if row["part"] == "attention":
            assert row["repeats"] and 0 < row["difference"] == row["difference_of_plain"] < 0.05
        if row["part"] == "logits":
            assert row["difference"] == 0 if row["dtype"] == "float32" else 0 < row["difference"] < 0.05
    quick = rows["quick start's student"]
    assert quick["steps"] == 4 and 0 < quick["last_loss"] < 4 and quick["images_per_second"] > 0
    shown = subprocess.run([*command[:2], f"--table={path}"], capture_output=True, text=True, check=True)
    parts = len({row["part"] for row in rows.values()})
    assert (
        len(shown.stdout.splitlines()) == len(rows) + parts * 2 + parts - 1
    )  # two header lines per part, empty lines between
