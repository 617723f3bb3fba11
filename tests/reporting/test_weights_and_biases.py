"""Tests the real wandb in offline mode, by reading the files that it writes."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from deit_jax.reporting.run_log import LogError, Pictures, RunLog
from deit_jax.reporting.weights_and_biases import last_logged_step, read_records
from tests.end_to_end.commands import ROOT, TINY, command, environment, succeed
from tests.tiny import tiny_config

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    yield
    # wandb keeps the environment of its first run, and a process that child processes would share.
    import wandb

    wandb.teardown()


def files(workdir):
    return sorted(workdir.glob("wandb/offline-run-*/*.wandb"))


def history(path):
    """Returns {step: {name: value}} of a file."""
    found = {}
    for record in read_records(path):
        if record.WhichOneof("record_type") == "history":
            assert record.history.step.num not in found
            found[record.history.step.num] = items(record.history.item)
    return found


def items(found):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in found}


def logged(workdir):
    """Returns (step, loss) of all files of a run, in order."""
    rows = [row for path in files(workdir) for row in history(path).items()]
    return [(step, row["train/loss"]) for step, row in rows if "train/loss" in row]


def write(workdir, start, steps, **changes):
    with RunLog(tiny_config(log__wandb=True, **changes), workdir) as log:
        log.begin(start)
        for step in steps:
            log.write(step, {"train/loss": step / 10})
    settle(workdir)


def settle(workdir):
    """Waits for wandb, whose `finish` returns in offline mode before its process has written the file."""
    deadline = time.monotonic() + 30
    while True:
        newest = files(workdir)[-1:]
        kinds = {record.WhichOneof("record_type") for path in newest for record in read_records(path)}
        if "exit" in kinds or time.monotonic() > deadline:
            return
        time.sleep(0.05)


def test_a_run_has_its_rows_configuration_pictures_and_results(tmp_path):
    arguments = [TINY, f"--workdir={tmp_path}/run", "--config.log.wandb", "--config.log.report"]
    done = succeed(*arguments, "--config.log.wandb_project=papers", "--config.log.wandb_name=first")
    assert "Weights & Biases: run " in done.stdout and "wandb" not in done.stderr
    (path,) = files(tmp_path / "run")
    records = list(read_records(path))
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name) == ("papers", "first")
    assert run.run_id == json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
    config = items(run.config.update)
    assert config["train"]["batch_size"] == 32 and config["model"]["overrides"]["depth"] == 2
    rows = history(path)
    expected = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for row in expected:
        assert {name: rows[row["step"]][name] for name in row if name != "step"} == {
            k: v for k, v in row.items() if k != "step"
        }
    assert rows[0]["images/training/count"] == 16 and len(rows[0]["images/training/captions"]) == 16
    assert rows[4]["images/attention/count"] == 16 and rows[4]["images/confusion/count"] == 1
    assert len(list((path.parent / "files" / "media" / "images" / "images").glob("training_0_*.png"))) == 16
    summary = {}
    for record in records:
        summary |= items(record.summary.update) if record.WhichOneof("record_type") == "summary" else {}
    assert summary["results/eval_images"] == 90 and "results/teacher/class/top1" in summary
    (end,) = [record.exit for record in records if record.WhichOneof("record_type") == "exit"]
    assert end.exit_code == 0


def test_a_resumed_run_neither_duplicates_nor_loses_a_row(tmp_path):
    write(tmp_path, 0, [1, 2, 3, 4, 5])  # the checkpoint is of step 3
    write(tmp_path, 3, [4, 5, 6])
    assert logged(tmp_path) == [(step, step / 10) for step in (1, 2, 3, 4, 5, 6)]
    assert len({path.name for path in files(tmp_path)}) == 1 and len(files(tmp_path)) == 2


def test_rows_lost_by_a_killed_process_are_sent_by_the_next(tmp_path):
    program = (
        "import sys; sys.path.insert(0, '.'); from pathlib import Path; from deit_jax.reporting.run_log import RunLog\n"
        "from tests.tiny import tiny_config\n"
        "log = RunLog(tiny_config(log__wandb=True), Path(sys.argv[1])); log.begin(0)\n"
        "for step in (1, 2, 3):\n    log.write(step, {'train/loss': step / 10})\n"
        "log.sync(); print('there', flush=True); import time; time.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while process.stdout.readline() not in ("there\n", ""):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    write(tmp_path, 3, [4, 5])
    assert logged(tmp_path) == [(step, step / 10) for step in (1, 2, 3, 4, 5)]


def test_wandb_enabled_later_gets_the_earlier_rows(tmp_path):
    with RunLog(tiny_config(), tmp_path) as log:
        log.begin(0)
        log.write(1, {"train/loss": 0.1})
        log.write(2, {"train/loss": 0.2})
    write(tmp_path, 2, [3])
    assert logged(tmp_path) == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_a_failure_during_a_run_is_a_warning(tmp_path, capsys):
    def broken(*arguments, **options):
        raise RuntimeError("the server\nis gone")

    with RunLog(tiny_config(log__wandb=True), tmp_path) as log:
        log.begin(0)
        log.write(1, {"train/loss": 0.1})
        log.sync()
        run = log._destinations[-1]._run
        send, run.log = run.log, broken
        log.write(2, {"train/loss": 0.2})
        log.sync()
        log.pictures(2, Pictures("images/some", [np.zeros((4, 4, 3), np.uint8)], [""]))
        log.write(3, {"train/loss": 0.3})
        log.sync()
        run.log = send
    run.finish()
    settle(tmp_path)
    output = capsys.readouterr().out
    assert output.count("warning: Weights & Biases failed (the server): the run continues without it") == 1
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    write(tmp_path, 3, [4])
    assert logged(tmp_path) == [(step, step / 10) for step in (1, 2, 3, 4)]


def test_a_rollback_continues_in_the_same_run(tmp_path):
    with RunLog(tiny_config(log__wandb=True), tmp_path) as log:
        log.begin(0)
        for step in (1, 2, 3):
            log.write(step, {"train/loss": 1.0})
        log.begin(1)
        for step in (2, 3, 4):
            log.write(step, {"train/loss": 0.5})
    settle(tmp_path)
    assert [step for step, _ in logged(tmp_path)] == [1, 2, 3, 4]


def test_a_failed_start_ends_a_new_run_but_not_a_resumed_one(tmp_path, monkeypatch, capsys):
    # Online, without a key, and without a terminal to ask for one.
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(
        LogError, match=r"config\.log\.wandb: Weights & Biases does not start \(.+\); run `wandb login`"
    ) as error:
        RunLog(tiny_config(log__wandb=True), tmp_path).begin(0)
    assert "\n" not in str(error.value)
    with RunLog(tiny_config(log__wandb=True), tmp_path) as log:
        log.begin(2)
        log.write(3, {"train/loss": 0.3})
    assert "warning: Weights & Biases failed" in capsys.readouterr().out


def test_truncated_files_are_read_up_to_their_end(tmp_path):
    write(tmp_path, 0, range(1, 400))
    (path,) = files(tmp_path)
    assert last_logged_step(path) == 399
    content = path.read_bytes()
    assert len(content) > 3 * 32768  # so that records are split at the ends of blocks
    path.write_bytes(content[: len(content) // 2])
    assert 0 < last_logged_step(path) < 399
    path.write_bytes(content[:3])
    assert last_logged_step(path) == last_logged_step(tmp_path / "none") == -1


def test_a_killed_run_resumes_its_wandb_run(tmp_path):
    changes = ["--config.train.max_steps=60", "--config.checkpoint.every_steps=10", "--config.log.wandb"]
    changes += ["--config.distillation.kind=labels", "--config.teacher.weights="]
    arguments = [TINY, *changes, f"--workdir={tmp_path}/run"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command(*arguments), cwd=ROOT, env=environment(), **pipes)
    try:
        while not list((tmp_path / "run" / "checkpoints").glob("[1-4]0/manifest.json")) and process.poll() is None:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    succeed(*arguments)
    expected = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert logged(tmp_path / "run") == [(row["step"], row["train/loss"]) for row in expected if "train/loss" in row]
