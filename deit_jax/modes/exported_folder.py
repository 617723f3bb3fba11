"""The folder of an export: which files belong to it, and what becomes of those of an earlier export in the same folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from deit_jax import console
from deit_jax.config import ConfigError
from deit_jax.storage.files import disk_faults
from deit_jax.storage.workdir import refuse_as_output
from deit_jax.weights.hub_files import WEIGHTS_FILE
from deit_jax.weights.program_file import MODEL_FILE

CARD, EARLIER_CARD = "README.md", "README.earlier.md"


def is_model_card(text: str) -> bool:
    """Whether a README.md is a model card that --push wrote."""
    _, _, rest = text.partition("---\n")
    return text.startswith("---\n") and '"deit_jax"' in rest.partition("---\n")[0] and "\n## Not verified\n" in rest


def check_folder(folder: Path, *, program: bool, push: bool) -> None:
    """Raises ConfigError if an export into `folder` would leave or replace files that it must not.

    program: the export writes a program, else weights. push: it writes a model card.
    """
    refuse_as_output(folder, ConfigError)
    other = WEIGHTS_FILE if program else MODEL_FILE
    if (folder / other).is_file():
        kinds = ("a program", "weights") if program else ("weights", "a program")
        raise ConfigError(
            f"--output={folder} holds {other} of another export, which would stay next to the new one: give {kinds[0]} and "
            f"{kinds[1]} separate folders, or delete {other}"
        )
    if push and (card := _read(folder / CARD)) is not None and not is_model_card(card):
        raise ConfigError(
            f"{folder / CARD} is not a model card of this program and would be replaced: give another folder"
        )


def digest_of_weights(folder: Path) -> str:
    """Returns the SHA-256 of the folder's weights file and config.json; "" if there are none."""
    try:
        card = (folder / "config.json").read_bytes()
        with (folder / WEIGHTS_FILE).open("rb") as file:
            return hashlib.sha256(card + hashlib.file_digest(file, "sha256").digest()).hexdigest()
    except OSError:
        return ""


def set_card_aside(folder: Path, new: str | None) -> None:
    """Renames the model card of an earlier export, which describes other weights, unless it equals `new`."""
    old = _read(folder / CARD)
    if old is None or old == new or not is_model_card(old):
        return
    with disk_faults(lambda reason: ConfigError(f"{folder / CARD} cannot be renamed ({reason})")):
        (folder / CARD).replace(folder / EARLIER_CARD)
    console.say(f"{folder / CARD} described an earlier export: renamed to {EARLIER_CARD}")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
