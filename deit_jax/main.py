"""The entry point of `run.py` and `python -m deit_jax`: one-line errors, exit statuses, and lost output."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import app, flags

from deit_jax.cache_folder import have_temporary_folder, without_home
from deit_jax.command_line import forget, parse, run
from deit_jax.errors import Stopped, UserError
from deit_jax.modes import MODES, UsageError
from deit_jax.printable import in_one_line, is_utf8
from deit_jax.reporting import standard_streams


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; returns, or exits with one line on stderr and a status of docs/reliability.md.

    arguments: flags and files; None: those of the process. May be called several times in one process, e.g. in Jupyter.
    """
    before = sys.argv
    standard_streams.make_lenient(_warn_of_lost_output)
    without_home()
    with _flags_of_one_call():
        try:
            if arguments is None and Path(sys.argv[0]).name == "ipykernel_launcher.py":
                raise UsageError('in a notebook use !python run.py --config=... or main(["--config=..."])')
            if arguments is not None:
                sys.argv = ["run.py", *arguments]  # for messages and records of the run
            app.run(_run_and_print, flags_parser=parse)
        except SystemExit as end:
            if end.code:
                raise
        except UserError as error:
            _leave(f"error: {error}", error.exit_status, together=False)
        except Stopped as stopped:
            _leave(str(stopped), stopped.exit_status)
        except KeyboardInterrupt:
            _leave("interrupted before there was anything to save", 128 + signal.SIGINT)
        except UnicodeEncodeError as error:
            if sys.getfilesystemencoding() == "utf-8":
                raise
            _leave(
                f"error: {error.object!r} cannot be a file name in this locale ({error.encoding}): set LC_ALL=C.UTF-8 "
                "or PYTHONUTF8=1",
                UserError.exit_status,
                together=False,
            )
        finally:
            sys.argv = before
            standard_streams.let_go()


@contextlib.contextmanager
def _flags_of_one_call() -> Iterator[None]:
    """Resets, at the end of the block, the flags that were parsed in it; absl keeps them for the whole process."""
    given = {name for name in flags.FLAGS if flags.FLAGS[name].present}
    try:
        yield
    finally:
        for name in list(flags.FLAGS):
            if flags.FLAGS[name].present and name not in given:
                flags.FLAGS[name].unparse()
        forget()


def _run_and_print(argv: Sequence[str]) -> None:
    output, workdir = flags.FLAGS["output"].value, flags.FLAGS["workdir"].value
    have_temporary_folder(*(Path(name) for name in (output, workdir) if name))
    if workdir and not is_utf8(os.path.abspath(workdir)):
        raise UsageError(
            f"--workdir={workdir}: checkpoints need a folder whose path is UTF-8: use another one, or if the locale is the "
            "cause set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
        )
    run(argv)
    if (printed := _printed()) != "nothing":
        standard_streams.require_printed(to_the_end=printed == "result")


def _printed() -> str:
    """`Mode.prints` of this command. If it is "nothing", lost output must not end a run."""
    given = flags.FLAGS
    if given["output"].value:
        return "nothing"
    lists = given["list"].value is not None or given["version"].value
    return "page" if lists else MODES[str(given["mode"].value)].prints


def _warn_of_lost_output(error: OSError | ValueError) -> None:
    if flags.FLAGS.is_parsed() and _printed() == "nothing" and not standard_streams.reader_has_ended(error):
        reason = standard_streams.reason(error)
        print(f"warning: standard output cannot be written ({reason}); the command continues", file=sys.stderr)


def _leave(line: str, status: int, *, together: bool = True) -> None:
    print(in_one_line(line), file=sys.stderr, flush=True)
    if not together and "deit_jax.parallel.distributed" in sys.modules:
        from deit_jax.parallel.distributed import leave_at_once

        leave_at_once(status)
    sys.exit(status)
