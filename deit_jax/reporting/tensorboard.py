"""Writes TensorBoard event files: metrics, hyperparameters, the configuration as text, and pictures."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from deit_jax.config import default_config
from deit_jax.printable import printable
from deit_jax.reporting.fields import changed, flat, text
from deit_jax.reporting.run_log import Destination, Pictures, Row, numbers


class TensorBoard(Destination):
    """Writes event files into `folder` (created if needed), one for each start of the run.

    tensorboardX's record writer writes synchronously (3 ms per row): rows survive the process, and disk errors raise OSError. Its
    SummaryWriter (0.06 ms per row) uses a thread, which a full disk ends: add_scalar then accepted 106 more rows without an
    error, and blocked on the next (tensorboardX 2.6.5).

    Each start makes TensorBoard forget the points after its checkpoint, which the run rewrites. Hyperparameters are written
    without a description of the experiment: TensorBoard then derives one from the fields of all runs, with those that differ
    first.

    config: all fields, nested, of JSON types.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder, self._config = folder, config
        self._records: RecordWriter | None = None

    def begin(self, start_step: int, kept: Sequence[Row]) -> None:
        self.close(0)
        self._folder.mkdir(parents=True, exist_ok=True)
        first = not any(self._folder.glob("events.out.tfevents.*"))
        # TensorBoard reads the files of a folder in name order.
        now = time.time_ns()
        self._records = RecordWriter(
            str(self._folder / f"events.out.tfevents.{now // 10**9}.{now % 10**9:09d}.deit_jax")
        )
        self._event(0, file_version="brain.Event:2")
        # A run that starts from scratch also discards what it had written for step 0.
        forget_from = start_step + 1 if start_step else 0
        self._event(forget_from, session_log=SessionLog(status=SessionLog.START))
        _, session_start, _ = summary.hparams(_hyperparameters(self._config), {})
        self._event(0, summary=session_start)
        if start_step == 0 or first:
            self._event(0, summary=summary.text("configuration", _as_markdown(self._config)))
        for row in kept if first else ():  # TensorBoard was enabled after an earlier start
            self._scalars(row["step"], numbers(row))
        self._records.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._scalars(step, values)
        self._flush()

    def pictures(self, step: int, pictures: Pictures) -> None:
        from deit_jax.reporting.plots import captioned_grid  # imports matplotlib

        content = io.BytesIO()
        height, width = captioned_grid(content, pictures.images, pictures.captions, class_names=pictures.class_names)
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content.getvalue())
        self._event(step, summary=Summary(value=[Summary.Value(tag=pictures.name, image=image)]))
        self._flush()

    def finish(self, step: int, results: Mapping[str, Any]) -> None:
        self._scalars(step, results)
        *_, session_end = summary.hparams({}, {})
        self._event(0, summary=session_end)
        self._flush()

    def close(self, status: int) -> None:
        if self._records is not None:
            records, self._records = self._records, None
            records.close()

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [Summary.Value(tag=printable(name), simple_value=value) for name, value in values.items()]
        self._event(step, summary=Summary(value=scalars))

    def _event(self, step: int, **content: Any) -> None:
        assert self._records is not None
        self._records.write(Event(wall_time=time.time(), step=step, **content).SerializeToString())

    def _flush(self) -> None:
        assert self._records is not None
        self._records.flush()


def _hyperparameters(config: Mapping[str, Any]) -> dict[str, str | float | bool]:
    """Returns all fields except `log.*`; types that TensorBoard lacks as text."""
    fields = {}
    for name, value in flat(config):
        if value is None or name.startswith("log."):
            continue
        plain = isinstance(value, str | bool) or (isinstance(value, int | float) and math.isfinite(value))
        fields[name] = value if plain else text(value)
    return fields


def _as_markdown(config: Mapping[str, Any]) -> str:
    """Returns a table of the fields that differ from the defaults, then all fields."""
    defaults = json.loads(default_config().to_json_best_effort())

    def row(*cells: str) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    lines = [row("field", "value", "default"), row("---", "---", "---")]
    lines += [row(name, text(value), text(default)) for name, value, default in changed(config, defaults)]
    every = [f"    {name} = {json.dumps(value, ensure_ascii=False)}" for name, value in flat(config)]
    return "\n".join([*lines, "", "All fields:", "", *every])
