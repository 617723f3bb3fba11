import io
import json
import math
import struct

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from deit_jax.reporting.run_log import LogError, MetricsFile, Pictures, RunLog, numbers, read_metrics
from tests.tiny import tiny_config

RESULTS = {
    "step": 6, "eval_images": 90, "scores": {"raw": {"class": {"top1": 1.0}}}, "protocol": {"crop": 28},
    "extra": {"v2": {"images": 30, "scores": {"raw": {"class": {"top1": 2.5}}}}}, "teacher": None,
}  # fmt: skip
PICTURES = Pictures(
    "images/some", [np.full((8, 8, 3), k, np.uint8) for k in range(5)], [f"image ${k}" for k in range(5)]
)


def events(folder):
    """Returns all events in TensorBoard's order; a record is length (8 bytes), checksum (4), content, checksum (4)."""
    found = []
    for path in sorted(folder.glob("*tfevents*")):
        content, start = path.read_bytes(), 0
        while start + 12 < len(content):
            (length,) = struct.unpack_from("<Q", content, start)
            found.append(Event.FromString(content[start + 12 : start + 12 + length]))
            start += length + 16
    return found


def shown(folder):
    """Returns (tag, step, value or kind) as TensorBoard shows them: a session start removes points of its step and later."""
    points = []
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            points = [point for point in points if point[1] < event.step]
        for value in event.summary.value:
            kind = value.WhichOneof("value")
            points.append((value.tag, event.step, round(value.simple_value, 6) if kind == "simple_value" else kind))
    return points


def losses(folder):
    return [(step, value) for tag, step, value in shown(folder) if tag == "train/loss"]


def write(workdir, start, steps, *, pictures=False, **changes):
    workdir.mkdir(exist_ok=True)
    with RunLog(tiny_config(**changes), workdir) as log:
        log.begin(start)
        if pictures and start == 0:
            log.pictures(0, PICTURES)
        for step in steps:
            log.write(step, {"train/loss": step / 10})


def test_numbers_keeps_only_numbers():
    assert numbers({"step": 3, "a": 1, "b": 0.5, "c": "text", "d": None, "e": True}) == {"a": 1.0, "b": 0.5}


def refuse(name):
    raise ValueError(f"{name} is not JSON")


@pytest.mark.parametrize("line", ["5", "null", "[1]", "{}", '{"step": null}', '{"step": "2"}', '{"step": 2'])
def test_rows_end_at_a_line_that_is_not_one(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    assert read_metrics(tmp_path) == [{"step": 1}]
    write(tmp_path, 1, [2])
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_null_is_read_as_nan_and_written_as_null(tmp_path):
    file = MetricsFile(tmp_path)
    file.begin(0, [])
    file.write(1, {"train/loss": math.nan, "train/grad_norm": 2.0})
    file.write(2, {"train/loss": 1.0})
    file.close(0)
    rows = read_metrics(tmp_path)
    assert math.isnan(rows[0].pop("train/loss")) and rows == [
        {"step": 1, "train/grad_norm": 2.0},
        {"step": 2, "train/loss": 1.0},
    ]
    before = (tmp_path / "metrics.jsonl").read_bytes()
    file.begin(2, read_metrics(tmp_path))
    file.close(0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    for line in before.decode().splitlines():
        json.loads(line, parse_constant=refuse)


def test_rows_end_before_the_first_damaged_line(tmp_path):
    for damage in (b"\xff", b"\0", b'{"step": 2, "tr'):
        (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "a": 0.5}\n' + damage + b'\n{"step": 3, "a": 1.0}\n')
        assert read_metrics(tmp_path) == [{"step": 1, "a": 0.5}]
    assert read_metrics(tmp_path / "nowhere") == []


def test_a_resumed_run_replaces_the_rows_after_its_checkpoint(tmp_path):
    write(tmp_path, 0, [1, 2, 3, 4, 5])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/l')  # killed while writing
    write(tmp_path, 3, [4, 5, 6])
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "tensorboard").exists()


def test_a_row_is_in_the_files_when_write_returns(tmp_path):
    with RunLog(tiny_config(log__tensorboard=True), tmp_path) as log:
        log.begin(0)
        log.write(1, {"train/loss": 0.5})
        assert read_metrics(tmp_path) == [{"step": 1, "train/loss": 0.5}]
        assert losses(tmp_path / "tensorboard") == [(1, 0.5)]


def test_texts_that_are_not_utf8_are_logged_escaped(tmp_path):
    config = tiny_config(log__tensorboard=True, data__path="caf\udce9\x1b")
    with RunLog(config, tmp_path) as log:
        log.begin(0)
        log.write(1, {"eval/a\x1b/top1": 0.5})
        log.pictures(1, Pictures("images/some", PICTURES.images[:1], ["花\x1b\udce9"], ["花\x1b\udce9"]))
    assert (r"eval/a\x1b/top1", 1, 0.5) in shown(tmp_path / "tensorboard")
    texts = [value.tensor.string_val for event in events(tmp_path / "tensorboard") for value in event.summary.value]
    assert any(rb"caf\xe9\x1b" in text for found in texts for text in found)


def test_nothing_is_written_before_begin_or_by_other_processes(tmp_path):
    with RunLog(tiny_config(log__tensorboard=True), tmp_path / "a") as log:
        log.pictures(0, PICTURES)  # from the report of a run that was already finished
    with RunLog(tiny_config(log__tensorboard=True), tmp_path / "b", silent=True) as log:
        log.begin(0)
        log.write(1, {"train/loss": 1.0})
        log.sync()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_neither_duplicates_nor_loses_a_point(tmp_path):
    folder, expected = tmp_path / "tensorboard", [(step, step / 10) for step in range(1, 7)]
    write(tmp_path, 0, [1, 2], pictures=True, log__tensorboard=True)  # killed before its first checkpoint
    write(tmp_path, 0, [1, 2, 3, 4, 5], pictures=True, log__tensorboard=True)
    write(tmp_path, 3, [4], log__tensorboard=True)
    write(tmp_path, 3, [4, 5, 6], log__tensorboard=True)
    assert losses(folder) == expected
    tags = [tag for tag, _, kind in shown(folder) if isinstance(kind, str)]
    assert sorted(tags) == ["configuration/text_summary", "images/some"]
    assert len(list(folder.iterdir())) == 4


def test_a_rollback_restarts_in_the_same_log(tmp_path):
    with RunLog(tiny_config(log__tensorboard=True), tmp_path) as log:
        log.begin(0)
        for step in (1, 2, 3):
            log.write(step, {"train/loss": 1.0})
        log.begin(1)
        log.write(2, {"train/loss": 0.5})
    assert losses(tmp_path / "tensorboard") == [(1, 1.0), (2, 0.5)]
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_tensorboard_enabled_later_gets_the_earlier_rows(tmp_path):
    write(tmp_path, 0, [1, 2, 3])
    write(tmp_path, 2, [3, 4], log__tensorboard=True)
    assert losses(tmp_path / "tensorboard") == [(step, step / 10) for step in (1, 2, 3, 4)]


def test_hyperparameters_configuration_pictures_and_results(tmp_path):
    with RunLog(tiny_config(log__tensorboard=True), tmp_path) as log:
        log.begin(0)
        log.pictures(0, PICTURES)
        log.write(6, {"eval/raw/class/top1": 1.0})
        log.finish(RESULTS)
    values = {value.tag: value for event in events(tmp_path / "tensorboard") for value in event.summary.value}
    start = HParamsPluginData.FromString(values["_hparams_/session_start_info"].metadata.plugin_data.content)
    found = start.session_start_info.hparams
    assert found["train.batch_size"].number_value == 32 and found["model.overrides.depth"].number_value == 2
    assert found["optimizer.name"].string_value == "adamw" and found["schedule.per_step"].bool_value is False
    assert json.loads(found["optimizer.betas"].string_value) == [0.9, 0.999]
    assert not any(name.startswith("log.") for name in found)
    assert "_hparams_/session_end_info" in values
    text = values["configuration/text_summary"].tensor.string_val[0].decode()
    assert "| train.batch_size | 32 | 1024 |" in text and "    seed = 0" in text
    picture = values["images/some"].image
    image = Image.open(io.BytesIO(picture.encoded_image_string))
    assert image.size == (picture.width, picture.height) and picture.width > picture.height > 400
    numbers = {tag: value.simple_value for tag, value in values.items() if value.WhichOneof("value") == "simple_value"}
    assert numbers == {
        "eval/raw/class/top1": 1.0, "results/eval_images": 90.0, "results/extra/v2/images": 30.0,
        "results/extra/v2/scores/raw/class/top1": 2.5,
    }  # fmt: skip


def test_pictures_can_be_disabled(tmp_path):
    assert not RunLog(tiny_config(log__tensorboard=True, log__images=False), tmp_path).shows_pictures
    write(tmp_path, 0, [1], pictures=True, log__tensorboard=True, log__images=False)
    assert not any(tag.startswith("images") for tag, _, _ in shown(tmp_path / "tensorboard"))


def test_a_missing_wandb_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LogError, match=r"config\.log\.wandb needs the package wandb: pip install wandb"):
        RunLog(tiny_config(log__wandb=True), tmp_path)


@pytest.mark.long
def test_tensorboard_reads_the_event_files(tmp_path):
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import backend_context, list_session_groups
    from tensorboard.plugins.hparams.api_pb2 import ListSessionGroupsRequest, Status

    for name, batch_size in (("a", 16), ("b", 32)):
        changes = {"log__tensorboard": True, "train__batch_size": batch_size}
        write(tmp_path / name, 0, [1, 2, 3], pictures=True, **changes)
        write(tmp_path / name, 2, [3, 4], **changes)
    found = EventAccumulator(str(tmp_path / "a" / "tensorboard"), size_guidance={"images": 0})
    found.Reload()
    assert [(event.step, round(event.value, 6)) for event in found.Scalars("train/loss")] == [
        (k, k / 10) for k in (1, 2, 3, 4)
    ]
    assert [event.step for event in found.Images("images/some")] == [0]
    assert [event.step for event in found.Tensors("configuration/text_summary")] == [0]

    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    runs.Reload()
    context = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(tmp_path))))
    asked = RequestContext()
    hparams = context.hparams_metadata(asked, "")
    experiment = context.experiment_from_metadata(
        asked, "", True, hparams, context.hparams_from_data_provider(asked, "", limit=None)
    )
    fields = {info.name: info for info in experiment.hparam_infos}
    assert fields["train.batch_size"].differs and not fields["seed"].differs
    assert [info.name.tag for info in experiment.metric_infos] == ["train/loss"]
    statuses = [Status.STATUS_UNKNOWN, Status.STATUS_RUNNING, Status.STATUS_SUCCESS, Status.STATUS_FAILURE]
    request = ListSessionGroupsRequest(allowed_statuses=statuses, slice_size=10)
    column = request.col_params.add()
    column.metric.tag = "train/loss"
    groups = list_session_groups.Handler(asked, context, "", request).run().session_groups
    assert sorted(group.sessions[0].name for group in groups) == [
        "a/tensorboard",
        "b/tensorboard",
    ]  # not separate runs
    assert all(group.metric_values[0].value == pytest.approx(0.4) for group in groups)
