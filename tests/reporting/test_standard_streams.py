import os
import sys

import pytest

from deit_jax.reporting.standard_streams import LenientStream, OutputError, reader_has_ended, require_printed

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")


@pytest.fixture
def full():
    """A stream to a full disk."""
    stream = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    yield stream
    with pytest.raises(OSError):
        stream.close()


def test_text_refused_by_a_full_disk_is_dropped_and_reported_once(full):
    faults = []
    stream = LenientStream(full, full.fileno(), faults.append)
    for _ in range(3):
        print("line", file=stream, flush=True)
    assert [error.strerror for error in faults] == ["No space left on device"]
    assert stream.fault is faults[0] and not reader_has_ended(stream.fault)


def test_later_text_is_written_once_there_is_room(tmp_path):
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


def test_a_closed_pipe_is_detected_and_python_exits_silently():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        stream = LenientStream(pipe, writer)
        print("line", file=stream, flush=True)
        assert reader_has_ended(stream.fault)
        print("kept back", file=stream)
        stream.let_go()
        # Closes without an error: the buffered text went to /dev/null.


def test_unprinted_output_raises(full, monkeypatch):
    monkeypatch.setattr(sys, "stdout", LenientStream(full, full.fileno()))
    print("result")
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)"):
        require_printed(to_the_end=False)
    monkeypatch.setattr(sys, "stdout", LenientStream(None, 1))
    with pytest.raises(OutputError, match="it is closed"):
        require_printed(to_the_end=False)


def test_a_closed_pipe_raises_only_if_all_output_is_required(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", LenientStream(pipe, writer))
        print("result", flush=True)
        require_printed(to_the_end=False)
        with pytest.raises(OutputError, match="Broken pipe"):
            require_printed(to_the_end=True)
        sys.stdout.let_go()
