"""A run's numbers, configuration and pictures to Weights & Biases (package wandb), if config.log.wandb asks for it."""

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
from deit_jax.reporting.run_log import LogError, Pictures, Row, numbers
from deit_jax.storage.workdir import WANDB_NOTE, Workdir


class WeightsAndBiases:
    """One W&B run for the run in `workdir`, however often that is interrupted. A `Destination` of `run_log`.

    The W&B run's id is kept in `workdir`/wandb.json. Rows that W&B has cannot be rewritten, so they are not sent again; those
    that it lacks, because a process was killed or W&B failed, are sent from metrics.jsonl at the next start. A resumed run
    repeats its steps to the bit, only the speed differs. After a rollback (config.on_nonfinite) the abandoned steps stay as they
    were.

    A failure in mid-run is a warning, and ends what is sent until the next start; so is one at the start of a run that goes on.

    Args:
      settings: config.log.
      workdir: the files of W&B are in `workdir`/wandb.
      config: all fields, nested, of JSON's types.

    `begin` raises LogError if W&B does not start for a new run.
    """

    def __init__(self, settings: ConfigDict, workdir: Workdir, config: Mapping[str, Any]) -> None:
        self._settings, self._workdir, self._config = settings, workdir, config
        self._run: Any = None
        self._failed = False
        self._sent = -1  # the last step that W&B has
        # A step's rows are sent together when they are complete: half of them would pass for the step.
        self._step, self._values = 0, dict[str, Any]()

    def begin(self, start_step: int, kept: Sequence[Row]) -> None:
        """Start or continue the W&B run, and send what it lacks of `kept`."""
        self._values = {}
        if self._failed or self._run is not None:  # after a rollback
            return
        try:
            self._start()
        except Exception as error:
            if start_step == 0:
                raise LogError(
                    f"config.log.wandb: Weights & Biases does not start ({first_line(error)}); log in by `wandb login`, or set "
                    "WANDB_MODE=offline, or the field to False"
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
            name=settings.wandb_name or os.environ.get("WANDB_NAME", self._workdir.path.resolve().name),
            id=name,
            resume="allow",
            dir=str(self._workdir),
            config=dict(self._config),
            allow_val_change=True,
            settings=wandb.Settings(silent=True),  # the one line below tells
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
        """A row, unless W&B has that step; its values are numbers or W&B's own."""
        if step > self._step:
            self._send()
        if step > self._sent:
            self._step = step
            self._values |= values

    def pictures(self, step: int, pictures: Pictures) -> None:
        """Each picture with its caption."""

        def images() -> None:
            import wandb

            pairs = zip(pictures.images, pictures.captions, strict=True)
            self.write(step, {pictures.name: [wandb.Image(image, caption=caption) for image, caption in pairs]})

        if self._run is not None:
            self._attempt(images)

    def sync(self) -> None:
        """The rows so far are complete; what W&B has not received when the process dies, the next start sends."""
        self._send()

    def finish(self, step: int, results: Mapping[str, float]) -> None:
        """The results, into the W&B run's summary."""
        self._send()
        self._attempt(lambda: self._run.summary.update(dict(results)))

    def close(self, status: int) -> None:
        """Wait until everything is sent, and end the W&B run."""
        if status == 0:
            self._send()
        self._attempt(lambda: self._run.finish(exit_code=status))
        self._run = None

    def _send(self) -> None:
        if self._values:
            values, self._values = self._values, {}
            # Without commit: what else comes of this step joins it.
            self._attempt(lambda: self._run.log(values, step=self._step))
            self._sent = max(self._sent, self._step - 1)

    def _attempt(self, action: Callable[[], None]) -> None:
        if self._run is None:
            return
        try:
            action()
        except Exception as error:  # whatever it is, it must not end the training
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run, self._failed = None, True
        console.warn(
            f"Weights & Biases fails ({first_line(error)}): this run goes on without it; what is missing there is sent when the "
            "run is resumed"
        )


# --- What an offline run has on the disk ---

# wandb 0.31 reads these files in its Go core only, and an offline run does not know what an earlier one of its id has logged.
# Without this reader a resumed run would log rows twice, or lose those that a killed process had not written.
_MAGIC = b":W&B"
# Bytes: the file's header; a block of LevelDB's log format, whose records do not cross its end.
_FIRST, _BLOCK = 7, 32768
_HEADER = struct.Struct("<IHB")  # of a piece: checksum, length, kind
_WHOLE, _FIRST_PIECE, _LAST_PIECE = 1, 2, 4


def read_records(path: Path) -> Iterator[Any]:
    """The records (wandb's protocol buffers) of a `.wandb` file, which is LevelDB's log; ends where a killed process ended it."""
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
    """The step of the last row that a `.wandb` file holds; -1 if it holds none or is not there."""
    if not path.exists():
        return -1
    steps = [record.history.step.num for record in read_records(path) if record.WhichOneof("record_type") == "history"]
    return max(steps, default=-1)
