"""Logs a run to Weights & Biases (package wandb), if config.log.wandb is set."""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.errors import first_line
from deit_jax.reporting.run_log import Destination, LogError, Pictures, Row, numbers
from deit_jax.storage.workdir import WANDB_NOTE, Workdir


class WeightsAndBiases(Destination):
    """Uses one W&B run for all starts of the run in `workdir`; its id is in `workdir`/wandb.json.

    Rows in W&B cannot be rewritten, so they are not sent again. Rows that it lacks, because a process was killed or W&B failed,
    are sent from metrics.jsonl at the next start: a resumed run repeats its steps bit for bit, except for the speed. After a
    rollback (config.on_nonfinite) the abandoned steps remain.

    A failure during the run, or at the start of a resumed one, is a warning and disables W&B until the next start. `begin` raises
    LogError if W&B does not start for a new run.

    settings: config.log. config: all fields, nested, of JSON types.
    """

    def __init__(self, settings: ConfigDict, workdir: Workdir, config: Mapping[str, Any]) -> None:
        self._settings, self._workdir, self._config = settings, workdir, config
        self._run: Any = None
        self._failed = False
        self._sent = -1  # the last step that W&B has
        # The rows of a step are sent together, once complete: a part of them would count as the step.
        self._step, self._values = 0, dict[str, Any]()

    def begin(self, start_step: int, kept: Sequence[Row]) -> None:
        self._values = {}
        if self._failed or self._run is not None:  # after a rollback
            return
        try:
            self._start()
        except Exception as error:
            if start_step == 0:
                raise LogError(
                    f"config.log.wandb: Weights & Biases does not start ({first_line(error)}); run `wandb login`, set "
                    "WANDB_MODE=offline, or set the field to False"
                ) from error
            self._give_up(error)
        for row in kept:
            self.write(row["step"], numbers(row))

    def _start(self) -> None:
        import wandb  # an extra, and slow to import

        note = self._workdir.read_json(WANDB_NOTE)
        name = os.environ.get("WANDB_RUN_ID", uuid.uuid4().hex[:8]) if note is None else note["id"]
        settings = self._settings
        run = wandb.init(
            project=settings.wandb_project or os.environ.get("WANDB_PROJECT", "deit_jax"),
            entity=settings.wandb_entity or None,
            name=settings.wandb_name or os.environ.get("WANDB_NAME", self._workdir.name),
            id=name,
            resume="allow",
            dir=str(self._workdir),
            config=dict(self._config),
            allow_val_change=True,
            settings=wandb.Settings(silent=True),  # the line below is enough
        )
        self._workdir.write_json(WANDB_NOTE, {"id": name})
        where = f"run {name}"
        if run.offline:
            folder = Path(run.settings.sync_dir)
            earlier = [path for path in folder.parent.glob(f"offline-run-*-{name}") if path != folder]
            self._sent = max((last_logged_step(path / f"run-{name}.wandb") for path in earlier), default=-1)
            where += f", offline, in {folder}"
        else:
            self._sent = run.step - 1
            where = run.url or where
        console.say(f"Weights & Biases: {where}")
        self._run = run

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes a row, unless W&B has that step; values are numbers or W&B objects."""
        if step > self._step:
            self._send()
        if step > self._sent:
            self._step = step
            self._values |= values

    def pictures(self, step: int, pictures: Pictures) -> None:
        def images() -> None:
            import wandb

            pairs = zip(pictures.images, pictures.captions, strict=True)
            self.write(step, {pictures.name: [wandb.Image(image, caption=caption) for image, caption in pairs]})

        if self._run is not None:
            self._attempt(images)

    def sync(self) -> None:
        self._send()  # if the process dies before W&B has received it, the next start sends it again

    def finish(self, step: int, results: Mapping[str, float]) -> None:
        self._send()
        self._attempt(lambda: self._run.summary.update(dict(results)))

    def close(self, status: int) -> None:
        if status == 0:
            self._send()
        self._attempt(lambda: self._run.finish(exit_code=status))
        self._run = None

    def _send(self) -> None:
        if self._values:
            values, self._values = self._values, {}
            # Without commit, so that later values of this step are added to it.
            self._attempt(lambda: self._run.log(values, step=self._step))
            self._sent = max(self._sent, self._step - 1)

    def _attempt(self, action: Callable[[], None]) -> None:
        if self._run is None:
            return
        try:
            action()
        except Exception as error:  # no error of W&B may end the training
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run, self._failed = None, True
        console.warn(
            f"Weights & Biases failed ({first_line(error)}): the run continues without it; missing rows are sent when the run is "
            "resumed"
        )


# --- Files of offline runs ---

# wandb 0.31 reads these files only in its Go core, and an offline run does not know what an earlier one of its id has logged.
# Without this reader a resumed run would duplicate rows, or lose those that a killed process had not written.
_MAGIC = b":W&B"
# In bytes: the file's header; a block of LevelDB's log format, which no piece of a record crosses.
_FIRST, _BLOCK = 7, 32768
_HEADER = struct.Struct("<IHB")  # header of a piece: checksum, length, kind
_WHOLE, _FIRST_PIECE, _LAST_PIECE = 1, 2, 4


def read_records(path: Path) -> Iterator[Any]:
    """Yields the records (wandb's protocol buffers) of a `.wandb` file, a LevelDB log that may be cut off."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    if not content.startswith(_MAGIC):
        return
    position, record = _FIRST, b""
    while True:
        left = _BLOCK - position % _BLOCK
        if left < _HEADER.size:
            position += left  # padding
        if position + _HEADER.size > len(content):
            return
        _, length, kind = _HEADER.unpack_from(content, position)
        position += _HEADER.size
        if kind == 0 or position + length > len(content):
            return
        if kind in (_WHOLE, _FIRST_PIECE):
            record = b""
        record += content[position : position + length]
        position += length
        if kind in (_WHOLE, _LAST_PIECE):
            yield Record.FromString(record)


def last_logged_step(path: Path) -> int:
    """Returns the step of the last row in a `.wandb` file; -1 if it has none or does not exist."""
    if not path.exists():
        return -1
    steps = [record.history.step.num for record in read_records(path) if record.WhichOneof("record_type") == "history"]
    return max(steps, default=-1)
