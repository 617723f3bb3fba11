"""TensorBoard's event files of a run: numbers, hyper-parameters, the configuration as text, pictures."""

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
from deit_jax.reporting.run_log import Pictures, Row, numbers

_FORMAT = "brain.Event:2"


class TensorBoard:
    """Writes event files into `folder`, one for each start of the run. A `Destination` of `run_log`.

    Records are written here and now by tensorboardX's record writer (3 ms a row): what `write` has returned from survives the
    process, and a disk's refusal is an OSError of the caller's. Its SummaryWriter (0.06 ms a row) hands rows to a thread, which a
    full disk ends: add_scalar then took 106 more rows without an error, and did not return from the next (tensorboardX 2.6.5).

    Every start tells TensorBoard to forget the points after its checkpoint, which it writes again. Hyper-parameters are summaries
    of the run's own, without the experiment's description: from several runs TensorBoard then makes one that has the fields of
    all, and puts those first that differ.

    Args:
      folder: made if it is not there.
      config: nested, of JSON's types.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder, self._config = folder, config
        self._records: RecordWriter | None = None

    def begin(self, start_step: int, kept: Sequence[Row]) -> None:
        """Open a file; if it is the first, the rows that the run has from before stand in it too."""
        self.close(0)
        self._folder.mkdir(parents=True, exist_ok=True)
        first = not any(self._folder.glob("events.out.tfevents.*"))
        # TensorBoard reads the files of a folder in the order of their names.
        now = time.time_ns()
        self._records = RecordWriter(
            str(self._folder / f"events.out.tfevents.{now // 10**9}.{now % 10**9:09d}.deit_jax")
        )
        self._event(0, file_version=_FORMAT)
        # Of a run that starts anew also what it had written of step 0.
        forget_from = start_step + 1 if start_step else 0
        self._event(forget_from, session_log=SessionLog(status=SessionLog.START))
        _, session_start, _ = summary.hparams(_hyper_parameters(self._config), {})
        self._event(0, summary=session_start)
        if start_step == 0 or first:
            self._event(0, summary=summary.text("configuration", _as_markdown(self._config)))
        for row in kept if first else ():
            self._scalars(row["step"], numbers(row))
        self._records.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a step; on the disk when this returns."""
        self._scalars(step, values)
        self._flush()

    def pictures(self, step: int, pictures: Pictures) -> None:
        """The pictures as one, in rows of four, with their captions."""
        from deit_jax.reporting.plots import captioned_grid  # matplotlib: only where there is something to draw

        content = io.BytesIO()
        height, width = captioned_grid(content, pictures.images, pictures.captions, class_names=pictures.class_names)
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content.getvalue())
        self._event(step, summary=Summary(value=[Summary.Value(tag=pictures.name, image=image)]))
        self._flush()

    def sync(self) -> None:
        """Nothing is left to be done: `write` has put it on the disk."""

    def finish(self, step: int, results: Mapping[str, Any]) -> None:
        """The results as numbers of the last step, and that the run is finished."""
        self._scalars(step, results)
        *_, session_end = summary.hparams({}, {})
        self._event(0, summary=session_end)
        self._flush()

    def close(self, status: int) -> None:
        """Close the file, if one is open."""
        if self._records is not None:
            records, self._records = self._records, None
            records.close()

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        found = [Summary.Value(tag=printable(name), simple_value=value) for name, value in values.items()]
        self._event(step, summary=Summary(value=found))

    def _event(self, step: int, **content: Any) -> None:
        assert self._records is not None
        self._records.write(Event(wall_time=time.time(), step=step, **content).SerializeToString())

    def _flush(self) -> None:
        assert self._records is not None
        self._records.flush()


def _hyper_parameters(config: Mapping[str, Any]) -> dict[str, str | float | bool]:
    """Every field but those of the log itself; what TensorBoard has no type for as text."""
    found = {}
    for name, value in flat(config):
        if value is None or name.startswith("log."):
            continue
        plain = isinstance(value, str | bool) or (isinstance(value, int | float) and math.isfinite(value))
        found[name] = value if plain else text(value)
    return found


def _as_markdown(config: Mapping[str, Any]) -> str:
    """What differs from the defaults as a table, then everything."""
    defaults = json.loads(default_config().to_json_best_effort())

    def row(*cells: str) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    lines = [row("field", "value", "default"), row("---", "---", "---")]
    lines += [row(name, text(value), text(default)) for name, value, default in changed(config, defaults)]
    every = [f"    {name} = {json.dumps(value, ensure_ascii=False)}" for name, value in flat(config)]
    return "\n".join([*lines, "", "All fields:", "", *every])
