"""--mode=prepare: writes the images of any source as array_record shards, which data.source=array_record reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.config import ConfigError
from deit_jax.config_check import validate
from deit_jax.data.assembling import AUTO, default_threads, default_workers
from deit_jax.data.output_folder import OutputFolder
from deit_jax.data.preparing import prepare
from deit_jax.data.registry import open_source
from deit_jax.data.shard_writing import Settings
from deit_jax.data.sources import ImageSource, Split, notes_of
from deit_jax.errors import Stopped
from deit_jax.modes.evaluate import without_teacher

SPLITS: dict[str, Split] = {"train": "train", "validation": "eval"}


def prepare_images(config: ConfigDict, output: str, *, splits: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Writes the training and evaluation images of `config.data` to `output`, a folder or an address; see `prepare`.

    splits: of SPLITS. Returns the content of the folder's card.

    Raises ConfigError or DataError with a one-line message, and Stopped after Ctrl-C.
    """
    validate(config := without_teacher(config))
    if settings.shortest_side is not None and settings.shortest_side < 1:
        raise ConfigError(f"--shortest_side={settings.shortest_side}: give pixels, 1 or more")
    if not 1 <= settings.quality <= 100:
        raise ConfigError(f"--quality={settings.quality}: give JPEG's quality, 1 to 100")
    if settings.shard_images < 1:
        raise ConfigError(f"--shard_images={settings.shard_images}: give 1 or more")
    data, folder = config.data, OutputFolder(output)
    sources: dict[str, ImageSource] = {split: open_source(data, SPLITS[split]) for split in splits}
    facts: dict[str, str | Sequence[str]] = {
        "images": ", ".join(f"{len(source):,} for {split}" for split, source in sources.items())
        + f", {len(sources[splits[0]].class_names):,} classes",
        "files": "their bytes as they are, arrays as PNG"
        if settings.shortest_side is None
        else f"JPEG of quality {settings.quality} with a shortest side of {settings.shortest_side} pixels; images that are not "
        "larger as they are",
        "shards": f"{settings.shard_images:,} images each",
    }
    if notes := notes_of(*sources.values()):
        facts["data notes"] = notes
    console.announce(f"Preparing in {folder}", facts)
    origin = {
        "source": data.source,
        "path": data.path,
        "name": data.name if data.source == "tfds" else "",
        "splits": {split: data[f"{SPLITS[split]}_split"] for split in splits},
    }
    workers = default_workers() if data.num_workers == AUTO else data.num_workers
    try:
        card = prepare(
            sources,
            folder,
            settings,
            origin=origin,
            on_bad_image=data.on_bad_image,
            num_workers=workers,
            num_threads=default_threads(workers) if data.num_threads is None else data.num_threads,
        )
    except KeyboardInterrupt:
        raise Stopped(f"stopped; finished shards are in {folder}, the same command continues") from None
    for split, found in card["splits"].items():
        size, count = sum(shard["bytes"] for shard in found["shards"]), len(found["shards"])
        resized = f", {found['resized']:,} of them resized" if found["resized"] else ""
        left_out = f", {found['left_out']:,} that cannot be read left out" if found["left_out"] else ""
        console.say(
            f"{split}: {found['images']:,} images{resized}{left_out}, {size / 1e6:,.1f} MB in {count:,} shard{'s' * (count != 1)}"
        )
    console.say(f"complete and verified; to train on it: --config.data.source=array_record --config.data.path={folder}")
    return card
