"""The places of a workdir's checkpoints. What is kept, and which one is used, is decided in training/."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from deit_jax.storage import manifest
from deit_jax.storage.files import write_json

_FORMAT = "format.json"  # is there since checkpoints have manifests
_STATE = "default"  # of a step's folder: where Orbax writes
_DISCARDED = ".discarded"  # renamed so before it is deleted, so that half of it is never taken for a checkpoint
_DAMAGED = ".damaged"  # renamed so and left: what to do with it is for the owner to say


class CheckpointPlaces:
    """A folder a step, of the state's files and a manifest of them, written last.

    So a place is finished or it is not, and what is finished can be checked. Raises OSError where the disk refuses something.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def address(self, step: int) -> str:
        """Of a step's place, for messages."""
        return str(self._place(step))

    def state(self, step: int) -> Path:
        """Where the state of a step is written to and read from by Orbax."""
        return self._place(step) / _STATE

    def exist(self) -> bool:
        """Whether the workdir has any place for checkpoints, though it may be empty."""
        return self._folder.is_dir()

    def have_manifests(self) -> bool:
        """Whether a run has opened them that writes manifests: a place without one is then not finished."""
        return (self._folder / _FORMAT).exists()

    def steps(self) -> list[int]:
        """The steps that have a place, finished or not, in order."""
        if not self.exist():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit() and path.is_dir())

    def has(self, step: int) -> bool:
        """Whether the step has a place, finished or not."""
        return self._place(step).is_dir()

    # --- What a reader asks of a place ----------------------------------------------------------------------------------------

    def is_sealed(self, step: int) -> bool:
        """Whether the place was finished once."""
        return manifest.is_sealed(self._place(step))

    def is_unfinished(self, step: int) -> bool:
        """Whether the place was begun and not sealed; a run may be writing there now.

        One that has a state and neither mark has lost its manifest, or was made without.
        """
        return manifest.is_unfinished(self._place(step)) or not (self.state(step).exists() or self.is_sealed(step))

    def facts(self, step: int) -> dict[str, Any]:
        """What `seal` was given. Raises DamageError if the manifest cannot be read."""
        return manifest.facts(self._place(step))

    def check(self, step: int) -> None:
        """Compare all files with the manifest. Raises DamageError for one that is not there or not what it was."""
        manifest.check(self._place(step))

    # --- What the run that owns the workdir does ------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the folder, and finish what a killed run has left of `discard`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            if path.name.endswith(_DISCARDED):
                shutil.rmtree(path)

    def say_that_they_have_manifests(self) -> None:
        """From now on `have_manifests`."""
        write_json(self._folder / _FORMAT, {"format": 2})

    def begin(self, step: int) -> None:
        """Make a place, which is unfinished until it is sealed."""
        manifest.begin(self._place(step))

    def seal(self, step: int, facts: dict[str, Any]) -> None:
        """Finish a place whose state is written; `facts` are of JSON's types. All of it is on the disk when this returns."""
        manifest.seal(self._place(step), facts)

    def abandon(self, step: int) -> None:
        """Remove a place that could not be written, as far as the disk allows it."""
        shutil.rmtree(self._place(step), ignore_errors=True)

    def discard(self, step: int) -> None:
        """Remove a place; a process that is killed meanwhile leaves nothing that looks like one."""
        path = self._place(step)
        gone = path.with_name(path.name + _DISCARDED)
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone)

    def set_aside(self, step: int) -> str:
        """Keep a place out of the way of those that are used; returns the name that it has from now on."""
        path = self._place(step)
        aside = path.with_name(path.name + _DAMAGED)
        while aside.exists():
            aside = aside.with_name(aside.name + _DAMAGED)
        path.rename(aside)
        return aside.name

    def _place(self, step: int) -> Path:
        return self._folder / str(step)
