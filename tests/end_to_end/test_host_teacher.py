"""A function as the teacher of a recording by several processes."""

import json

import pytest

from .commands import TINY, run_together, succeed

SPEC = "tests.host_teacher.own_teacher:teach"


@pytest.mark.long
def test_two_processes_ask_for_their_own_rows(tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    run_together(None, "--mode=record", f"--teacher={SPEC}", f"--output={two}", processes=2)
    succeed(TINY, "--mode=record", f"--teacher={SPEC}", f"--output={one}", devices=2)
    files = [
        {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"} for folder in (one, two)
    ]
    assert files[0] == files[1] and len(files[0]) == 2
    assert json.loads(files[0]["answers.json"])["fingerprint"]["teacher"]["spec"] == SPEC
    succeed(TINY, f"--workdir={tmp_path / 'run'}", f"--config.teacher.answers={one}", "--config.teacher.weights=")
    assert json.loads((tmp_path / "run/results.json").read_text())["step"] == 4
