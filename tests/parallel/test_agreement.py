"""Two real processes that differ both raise; see tests/end_to_end/test_processes.py for whole runs."""

import functools

import pytest

from deit_jax.errors import UserError
from deit_jax.parallel.agreement import agree
from deit_jax.parallel.distributed import first_process_first, start
from tests.end_to_end.commands import forked_together, free_port

FACTS = {"rate": 0.1, "classes": ["a", "b"], "digest": "0a", "images": 10}


def refuse(text):
    raise UserError(text)


def test_single_process():
    assert agree(lambda: 7, lambda value: refuse("not called")) == 7
    with pytest.raises(UserError, match="bad data"):
        agree(lambda: refuse("bad data"), dict)


def compare(address, number, facts):
    start(address, 2, int(number), heartbeat_seconds=30)
    try:
        make = functools.partial(first_process_first, lambda: facts if isinstance(facts, dict) else refuse(facts))
        made = agree(make, lambda made: made)
        print("agreed on", sorted(made))
    except UserError as error:
        print(error)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (FACTS, FACTS, ("agreed on",) * 2),
        (FACTS, FACTS | {"rate": 0.2}, ("process 1 differs from process 0 in rate: 0.2, not 0.1:",) * 2),
        (FACTS, {k: v for k, v in FACTS.items() if k != "digest"}, ("in digest: None, not '0a'",) * 2),
        (FACTS, FACTS | {"classes": ["b"] * 99, "images": 9}, ("classes: ['b', 'b',", "...", "images: 9, not 10")),
        (FACTS, "no such file", ("process 1: no such file", "no such file")),
        ("no such file", FACTS, ("no such file", "process 0: no such file")),
    ],
)
def test_both_processes_report_the_difference(first, second, message):
    address = f"127.0.0.1:{free_port()}"
    done = forked_together(compare, [(address, 0, first), (address, 1, second)])
    for process, part in zip(done, message[:2], strict=True):
        assert process.returncode == 0 and part in process.stdout, process.stdout + process.stderr
    assert all(part in done[0].stdout for part in message[2:])
