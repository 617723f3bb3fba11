import os
import sys

import pytest

from deit_jax.reporting.standard_streams import LenientStream, OutputError, reader_has_ended, require_printed

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")


@pytest.fixture
def full():
    """A stream of a full disk; its descriptor is the test's own."""
    stream = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    yield stream
    with pytest.raises(OSError):
        stream.close()


def test_what_a_full_disk_refuses_is_dropped_and_told_once(full):
    told = []
    stream = LenientStream(full, full.fileno(), told.append)
    for _ in range(3):
        print("line", file=stream, flush=True)
    assert [error.strerror for error in told] == ["No space left on device"]
    assert stream.fault is told[0] and not reader_has_ended(stream.fault)


def test_what_there_is_room_for_later_is_written(tmp_path):
    class Disk:
        def __init__(self, file):
            self.file, self.full = file, True

        def write(self, text):
            if self.full:
                raise OSError(28, "No space left on device")
            return self.file.write(text)

        def flush(self):
            self.file.flush()

    with (tmp_path / "log").open("w") as file:
        stream = LenientStream(disk := Disk(file), 1)
        stream.write("lost")
        disk.full = False
        stream.write("kept")
        stream.flush()
    assert (tmp_path / "log").read_text() == "kept"


def test_a_closed_pipe_is_known_and_python_ends_in_silence():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        stream = LenientStream(pipe, writer)
        print("line", file=stream, flush=True)
        assert reader_has_ended(stream.fault)
        print("kept back", file=stream)
        stream.let_go()
        # Closed here without an error: what was kept back went to /dev/null.


def test_a_result_that_was_not_printed_is_an_error(full, monkeypatch):
    monkeypatch.setattr(sys, "stdout", LenientStream(full, full.fileno()))
    print("result")
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)"):
        require_printed(to_the_end=False)
    monkeypatch.setattr(sys, "stdout", LenientStream(None, 1))
    with pytest.raises(OutputError, match="it is closed"):
        require_printed(to_the_end=False)


def test_a_reader_may_stop_where_not_all_is_wanted(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", LenientStream(pipe, writer))
        print("result", flush=True)
        require_printed(to_the_end=False)
        with pytest.raises(OutputError, match="Broken pipe"):
            require_printed(to_the_end=True)
        sys.stdout.let_go()
