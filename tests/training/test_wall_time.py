"""The account of a run's wall time."""

import json
import time

import pytest

from deit_jax.storage.workdir import WALL_TIME, Workdir
from deit_jax.training.wall_time import PARTS, WallTime


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    return advance


def one_start(workdir, clock, *, from_step=0, write=True):
    """2 s of starting, 3 s of compiling, 10 s of steps of which 1 s waiting for data, saved; then 4 s that were not."""
    wall_time = WallTime(workdir, write=write)
    clock(2)
    wall_time.begin(from_step)
    wall_time.enter("compile")
    clock(3)
    wall_time.enter("steps")
    clock(10)
    wall_time.enter("save")
    clock(0.5)
    wall_time.note(from_step + 100, waited=1.0, saved=True)
    wall_time.enter("steps")
    clock(4)
    return wall_time


def test_every_second_belongs_to_one_part(tmp_path, clock):
    found = one_start(Workdir(tmp_path), clock).total()
    parts = {"start": 2, "compile": 3, "steps": 13, "data": 1, "evaluation": 0, "save": 0.5, "lost": 0}
    assert found == {"starts": 1, "seconds": parts, "goodput": pytest.approx(13 / 19.5)}
    assert parts.keys() == PARTS.keys()


def test_steps_that_were_not_saved_are_lost_at_the_next_start(tmp_path, clock):
    workdir = Workdir(tmp_path)
    killed = one_start(workdir, clock)
    killed.note(140, waited=2.0)  # too early to be written again
    assert json.loads((tmp_path / WALL_TIME).read_text())["starts"][0]["step"] == 100
    clock(40)
    killed.note(500, waited=2.0)
    clock(1000)  # until the next start
    found = one_start(workdir, clock, from_step=100).total()
    assert found["starts"] == 2
    assert found["seconds"]["lost"] == pytest.approx(44)  # of which 1 s waiting for data
    assert found["seconds"]["steps"] == pytest.approx(9 + 13) and found["seconds"]["data"] == pytest.approx(2)
    assert sum(found["seconds"].values()) == pytest.approx(2 * 19.5 + 40)


def test_a_rollback_loses_what_was_not_saved_and_is_no_other_start(tmp_path, clock):
    wall_time = one_start(Workdir(tmp_path), clock)
    wall_time.begin(100)
    wall_time.enter("steps")
    clock(5)
    wall_time.note(200, waited=2.0, saved=True)
    found = wall_time.total()
    assert found["starts"] == 1 and found["seconds"]["lost"] == pytest.approx(4)
    assert found["seconds"]["steps"] == pytest.approx(9 + 3) and found["seconds"]["data"] == pytest.approx(1 + 2)
    assert sum(found["seconds"].values()) == pytest.approx(19.5 + 5)


def test_only_one_process_writes_and_a_damaged_file_is_ignored(tmp_path, clock):
    one_start(Workdir(tmp_path), clock, write=False)
    assert not (tmp_path / WALL_TIME).exists()
    for content in ("{", "[]", '{"starts": [3]}', '{"starts": [{"seconds": {}}]}'):
        (tmp_path / WALL_TIME).write_text(content)
        assert one_start(Workdir(tmp_path), clock).total()["starts"] == 1


def test_a_full_disk_does_not_end_a_run(tmp_path, clock):
    (tmp_path / "run").write_text("")  # no folder
    assert one_start(Workdir(tmp_path / "run"), clock).total()["starts"] == 1
