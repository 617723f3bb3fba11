"""The faults of benchmarks/faults_in_code.py fit the code, and its verdicts are right. The faults themselves are run by hand."""

import ast

import pytest

from benchmarks.deliberate_faults import FAULTS, Fault
from benchmarks.faults_in_code import ROOT, Outcome, pytest_arguments, read_report


def test_names_are_distinct():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_fits_the_code_and_changes_it(fault):
    assert fault.problem(ROOT) == ""
    sound = (ROOT / fault.file).read_text()
    faulty = fault.applied(sound)
    compile(faulty, fault.file, "exec")
    assert ast.dump(ast.parse(faulty)) != ast.dump(ast.parse(sound))


def test_a_stale_fault_is_reported(tmp_path):
    (tmp_path / "module.py").write_text("x = 1\ny = 1\n")
    for file, old, tests, problem in (
        ("module.py", "x = 2", (), "stale: 'x = 2' occurs 0 times in module.py, not once"),
        ("module.py", "= 1", (), "stale: '= 1' occurs 2 times in module.py, not once"),
        ("other.py", "x = 1", (), "stale: there is no other.py"),
        ("module.py", "x = 1", ("module.py", "tests/test_module.py"), "stale: there is no tests/test_module.py"),
        ("module.py", "x = 1", ("module.py",), ""),
    ):
        assert Fault("stale", file, old, "", tests).problem(tmp_path) == problem


def test_pytest_arguments_are_read_from_the_commands_of_make():
    printed = (
        'python3 -m venv .venv\n.venv/bin/python -m pytest -n 2 \\\n  -m "not long"\nX=1 python -m pytest tests/a\n'
    )
    assert pytest_arguments(printed) == [["-n", "2", "-m", "not long"], ["tests/a"]]
    with pytest.raises(SystemExit, match="make test runs no"):
        pytest_arguments("echo pytest\n")


PASSED = '<testcase classname="tests.test_a" name="test_one" file="tests/test_a.py"/>'
FAILED = '<testcase name="test_two[1]" file="tests/test_a.py"><failure message="AssertionError: 1"/></testcase>'
SLOW = '<testcase name="test_two" file="tests/test_a.py"><failure message="Failed: Timeout (&gt;9.0s)"/></testcase>'
ERROR = '<testcase classname="tests.test_a" name="test_x"><error message="collection failure&#10;more"/></testcase>'


@pytest.mark.parametrize(
    ("cases", "status", "expected"),
    [
        (PASSED, 0, Outcome("passed")),
        (PASSED + FAILED, 1, Outcome("caught", "tests/test_a.py::test_two[1]")),
        (ERROR + FAILED, 2, Outcome("caught", "tests/test_a.py::test_two[1]")),
        (SLOW, 1, Outcome("BROKEN", reason="tests/test_a.py::test_two took too long")),
        (PASSED + ERROR, 2, Outcome("BROKEN", reason="tests/test_a::test_x: collection failure")),
        (PASSED, 3, Outcome("BROKEN", reason="pytest ended with status 3 and no test failed")),
        ("", 5, Outcome("empty")),
        (None, 1, Outcome("BROKEN", reason="pytest ended with status 1 and wrote no report")),
    ],
)
def test_only_a_test_that_fails_catches_a_fault(tmp_path, cases, status, expected):
    report = tmp_path / "report.xml"
    if cases is not None:
        report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert read_report(report, status) == expected
