"""Puts deliberate faults into a copy of the package, one at a time, and reports which test of the short tier fails.

    python benchmarks/faults_in_code.py
    python benchmarks/faults_in_code.py --only=gelu-by-tanh,heads-swapped --baseline
    python benchmarks/faults_in_code.py --list

The list is in deliberate_faults.py. The tests run in a temporary copy of the working tree; the checkout is not changed. The tests
that mirror the faulty module run first. If all of them pass, the rest of `make test` follows. For each fault:

    caught    a test failed; its name follows
    SURVIVED  every test passed: a test is missing, or the fault changes nothing
    BROKEN    unknown: the tests could not be collected or set up, a process died, or the time limit was reached

The last line is one JSON object with the outcomes. The exit status is 0 if every fault was caught, else 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.deliberate_faults import FAULTS, Fault  # noqa: E402  (from this checkout)

# This test compares the list of faults with the code, so it fails for every fault, which proves nothing.
OWN_TEST = "tests/test_faults_in_code.py"
NO_TESTS = 5  # pytest's exit status when it selected none


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a run of tests, or of all runs with a fault. test: the id of the failed test."""

    status: str  # passed | caught | BROKEN | empty (no test was selected); for a fault SURVIVED instead of passed
    test: str = ""
    reason: str = ""


def copy_working_tree(target: Path) -> None:
    """Copies the files that git tracks or would add to `target`, in their current state."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_symlink() or (ROOT / name).is_file():  # skip deleted files
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)


def short_tier(root: Path) -> list[list[str]]:
    """Returns the arguments of every pytest command of `make test`, read from make so that the two cannot differ."""
    printed = subprocess.run(["make", "--dry-run", "test"], cwd=root, check=True, capture_output=True, text=True).stdout
    return pytest_arguments(printed)


def pytest_arguments(commands: str) -> list[list[str]]:
    """Returns what follows `-m pytest` in each command line that has it."""
    found = []
    for line in commands.replace("\\\n", " ").splitlines():
        before, pytest, after = line.partition(" -m pytest ")
        if pytest and before:
            found.append(shlex.split(after))
    if not found:
        sys.exit("make test runs no `python -m pytest`: correct pytest_arguments() in benchmarks/faults_in_code.py")
    return found


def read_report(path: Path, status: int) -> Outcome:
    """Reads the outcome from pytest's JUnit report. Only failing tests count, not errors outside of tests or timeouts."""
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return Outcome("BROKEN", reason=f"pytest ended with status {status} and wrote no report")
    timed_out = ""
    for case in cases:
        failure = case.find("failure")
        if failure is None:
            continue
        if not failure.get("message", "").startswith("Failed: Timeout"):
            return Outcome("caught", _test_id(case))
        timed_out = _test_id(case)
    if timed_out:
        return Outcome("BROKEN", reason=f"{timed_out} took too long")
    for case in cases:
        if (error := case.find("error")) is not None:
            return Outcome("BROKEN", reason=f"{_test_id(case)}: {first_line(error.get('message', 'an error'))}")
    if status == NO_TESTS and not cases:
        return Outcome("empty")
    if status:
        return Outcome("BROKEN", reason=f"pytest ended with status {status} and no test failed")
    return Outcome("passed")


def _test_id(case: ElementTree.Element) -> str:
    module = case.get("file") or case.get("classname", "").replace(".", "/")
    return f"{module}::{case.get('name')}"


def first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:200]


class ScratchCopy:
    """The copy of the working tree in `folder`; runs tests in it."""

    def __init__(self, folder: Path, python: str, pytest_args: Sequence[str], timeout: float) -> None:
        self.code = folder / "code"
        self._folder, self._python, self._timeout = folder, python, timeout
        self._pytest_args = list(pytest_args)
        (folder / "tmp").mkdir()
        # No bytecode, because it is matched to its source by second and size, which a fault may leave unchanged. Compiled
        # programs are keyed by their content, so the runs may share them.
        self._environment = os.environ | {
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(folder / "tmp"),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        }
        copy_working_tree(self.code)
        self._short_tier = short_tier(self.code)

    def imported_package(self) -> str:
        """Returns the file of the package that tests in the copy import. Exits if it is not the copy's."""
        done = subprocess.run(
            [self._python, "-c", "import deit_jax; print(deit_jax.__file__)"],
            cwd=self.code, env=self._environment, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"{self._python} cannot import deit_jax: {first_line(done.stderr.strip().splitlines()[-1])}")
        path = done.stdout.strip()
        if not Path(path).resolve().is_relative_to(self.code.resolve()):
            sys.exit(
                f"{self._python} imports {path}, not the copy in {self.code}: use a Python without deit_jax installed"
            )
        return path

    def try_fault(self, fault: Fault, *, mirrored_only: bool, baseline: bool) -> Outcome:
        """Applies a fault, runs the tests and reverts it. A fault that passes all tests "SURVIVED"."""
        path = self.code / fault.file
        sound = path.read_text()
        try:
            path.write_text(fault.applied(sound))
            outcome = self._run_short_tier(fault.tests, mirrored_only)
        finally:
            path.write_text(sound)
        if outcome.status == "passed":
            return Outcome("SURVIVED")
        if baseline and outcome.status == "caught":
            without = self._pytest(["-n", "0", outcome.test])
            if without.status != "passed":
                return Outcome("BROKEN", outcome.test, f"{outcome.test} does not pass without the fault either")
        return outcome

    def _run_short_tier(self, mirrored: Sequence[str], mirrored_only: bool) -> Outcome:
        # In one process: for a few modules, starting workers is not worth it.
        outcome = self._run_all([[*options, "-x", "-n", "0", *mirrored] for options in self._short_tier])
        if mirrored_only or outcome.status != "passed":
            return outcome
        others = [f"--ignore={path}" for path in (*mirrored, OWN_TEST)]
        return self._run_all([[*options, "-x", *others] for options in self._short_tier])

    def _run_all(self, runs: list[list[str]]) -> Outcome:
        """Runs tests until the first run that does not pass. Some runs may select no test, but not all."""
        result = Outcome("BROKEN", reason="no test was selected")
        for arguments in runs:
            outcome = self._pytest(arguments)
            if outcome.status == "passed":
                result = outcome
            elif outcome.status != "empty":
                return outcome
        return result

    def _pytest(self, arguments: list[str]) -> Outcome:
        report, log = self._folder / "report.xml", self._folder / "log.txt"
        report.unlink(missing_ok=True)
        # This report family includes the file of each test.
        arguments = [*arguments, f"--junitxml={report}", "-o", "junit_family=xunit1", *self._pytest_args]
        with log.open("w") as output:
            process = subprocess.Popen(
                [self._python, "-m", "pytest", *arguments],
                cwd=self.code, env=self._environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                status = process.wait(self._timeout)
            except subprocess.TimeoutExpired:
                return Outcome("BROKEN", reason=f"the tests took more than {self._timeout:g} s")
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # including pytest's workers and their children
                    process.wait()
        outcome = read_report(report, status)
        if outcome.status == "BROKEN":
            print("\n".join(log.read_text().splitlines()[-30:]), file=sys.stderr)
        return outcome


def chosen(names: str) -> list[Fault]:
    """Returns the faults with these names, separated by commas; all for ""."""
    known = {fault.name: fault for fault in FAULTS}
    wanted = [name for name in names.split(",") if name] or list(known)
    if unknown := [name for name in wanted if name not in known]:
        sys.exit(f"unknown fault {unknown[0]!r}; --list prints the names")
    return [known[name] for name in wanted]


def interpreter(given: str) -> str:
    """Returns an absolute path of a Python. Symlinks are kept, because an environment's link identifies it."""
    found = shutil.which(given)
    if found is None:
        sys.exit(f"--python={given}: there is no such program")
    return os.path.abspath(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="NAME,...", help="only these faults; default: all")
    parser.add_argument("--list", action="store_true", help="print the faults and exit")
    parser.add_argument("--mirrored-only", action="store_true", help="skip the rest; SURVIVED is then weaker")
    parser.add_argument("--baseline", action="store_true", help="check that the failed test passes without the fault")
    parser.add_argument("--pytest-args", default="", help='additional arguments of pytest, as in --pytest-args="-n 4"')
    parser.add_argument(
        "--python", default=sys.executable, help="the interpreter with the test tools; default: this one"
    )
    parser.add_argument("--timeout", type=float, default=3600, help="seconds that one run of pytest may take")
    options = parser.parse_args()
    if problems := [problem for fault in FAULTS if (problem := fault.problem(ROOT))]:
        sys.exit(f"the list in benchmarks/deliberate_faults.py is stale: {problems[0]} ({len(problems)} in all)")
    faults = chosen(options.only)
    if options.list:
        for fault in faults:
            print(f"{fault.name:38} {fault.file}")
        return
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix="faults_in_code_", ignore_cleanup_errors=True) as folder:
        python, pytest_args = interpreter(options.python), shlex.split(options.pytest_args)
        scratch = ScratchCopy(Path(folder), python, pytest_args, options.timeout)
        print(f"the tests import {scratch.imported_package()}", flush=True)
        for fault in faults:
            began = time.monotonic()
            outcome = scratch.try_fault(fault, mirrored_only=options.mirrored_only, baseline=options.baseline)
            seconds = round(time.monotonic() - began, 1)
            outcomes[fault.name] = {**dataclasses.asdict(outcome), "seconds": seconds}
            print(f"{fault.name:38} {outcome.status:8} {seconds:7.1f} s  {outcome.reason or outcome.test}", flush=True)
    print(json.dumps(outcomes))
    sys.exit(any(outcome["status"] != "caught" for outcome in outcomes.values()))


if __name__ == "__main__":
    main()
