import json
import struct

from tensorboardX.proto.event_pb2 import Event

from deit_jax.reporting.metrics import MetricsWriter, read_rows, write_json


def scalars(folder):
    """{(tag, step): value} of the event files: records of length (8 bytes), checksum (4), content, checksum (4)."""
    found = {}
    for path in folder.iterdir():
        content, start = path.read_bytes(), 0
        while start < len(content):
            (length,) = struct.unpack_from("<Q", content, start)
            event = Event.FromString(content[start + 12 : start + 12 + length])
            found |= {(value.tag, event.step): round(value.simple_value, 6) for value in event.summary.value}
            start += length + 16
    return found


def write(workdir, start, steps, tensorboard=False):
    with MetricsWriter(workdir, start_step=start, tensorboard=tensorboard) as writer:
        for step in steps:
            writer.write(step, {"train/loss": step / 10})


def test_a_resumed_run_replaces_the_rows_after_its_checkpoint(tmp_path):
    write(tmp_path, 0, [1, 2, 3, 4, 5])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/l')  # killed while writing
    write(tmp_path, 3, [4, 5, 6])
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_row_is_on_disk_when_write_returns(tmp_path):
    with MetricsWriter(tmp_path, start_step=0, tensorboard=False) as writer:
        writer.write(1, {"train/loss": 0.5})
        assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1, "train/loss": 0.5}]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    write(tmp_path, 0, [1, 2], tensorboard=True)
    assert scalars(tmp_path / "tensorboard") == {("train/loss", 1): 0.1, ("train/loss", 2): 0.2}


def test_json_files_are_replaced_whole(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2} and list(tmp_path.iterdir()) == [path]
