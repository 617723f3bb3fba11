"""Identifies the teacher and the initial weights of a run, so that a later start can detect other ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from deit_jax import console
from deit_jax.config import ConfigError
from deit_jax.data.sources import digest
from deit_jax.storage.workdir import WorkdirLike


@dataclasses.dataclass(frozen=True)
class NetworkIdentity:
    """A trained network, independent of its path. Unknown fields are None."""

    model: str  # its name
    weights: str  # `weights_digest`
    variables: str | None = None  # "raw" or "ema"
    step: int | None = None  # after which it was saved
    finished: bool | None = None  # whether its training was finished
    class_names: tuple[str, ...] | None = None  # in the order of its outputs
    image_size: int | None = None  # pixels

    def __str__(self) -> str:
        variables = f" {self.variables} weights" if self.variables else ""
        step = "" if self.step is None else f" after step {self.step:,}"
        return f"{self.model}{variables}{step} (digest {self.weights[:8]})"

    @classmethod
    def read(cls, recorded: Mapping[str, Any]) -> NetworkIdentity:
        """Returns the identity whose `dataclasses.asdict` was stored as JSON."""
        known: dict[str, Any] = {field.name: recorded.get(field.name) for field in dataclasses.fields(cls)}
        names = known.pop("class_names")
        return cls(**known, class_names=None if names is None else tuple(names))


def weights_digest(variables: Mapping[str, Any], without: Collection[str] = ()) -> str:
    """Returns a digest of the arrays of `variables` and their names: 32 hexadecimal digits.

    without: "/"-joined names of parameters or modules in "params" to leave out.
    """
    parts: list[bytes | np.ndarray] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(variables)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not any(f"{name}/".partition("/")[2].startswith(f"{left}/") for left in without):
            parts += [name.encode(), np.asarray(leaf)]
    return digest(*parts)


def check_teacher(
    workdir: WorkdirLike,
    record: Mapping[str, Any] | None,
    networks: Sequence[NetworkIdentity],
    *,
    on_change: str,
    step: int,
) -> list[dict[str, Any]]:
    """Returns the teachers of a run for its record: [{"from_step": 0, "networks": [...]}, ...], the present one last.

    record: of an earlier start, or None. on_change: "stop" raises ConfigError for another teacher than before; "continue" uses
    it from `step`.
    """
    unfinished = [network for network in networks if network.finished is False]
    for network in unfinished:
        console.warn(f"the teacher {network} was not trained to the end of its schedule")
    now = {"from_step": 0, "networks": [dataclasses.asdict(network) for network in networks]}
    history = list((record or {}).get("resolved", {}).get("teachers", []))
    if not history:
        return [now] if networks else []
    before = [NetworkIdentity.read(one) for one in history[-1]["networks"]]
    if [one.weights for one in before] == [one.weights for one in networks]:
        return history
    one, other = (" and ".join(map(str, several)) for several in (before, networks))
    if on_change == "stop":
        raise ConfigError(
            f"{workdir} was taught by {one}, the teacher is now {other}: set config.teacher.weights to the same teacher, or "
            "continue with the new one by --config.teacher.on_change=continue"
        )
    console.warn(f"another teacher from step {step:,}: {one} before, {other} now")
    return [*history, now | {"from_step": step}]


def check_initial(workdir: WorkdirLike, record: Mapping[str, Any] | None, weights: str) -> None:
    """Raises ConfigError if the digest `weights` differs from that of the initial weights of the run in `workdir`."""
    recorded = (record or {}).get("resolved", {}).get("initial")
    if recorded and recorded["weights"] != weights:
        raise ConfigError(
            f"{workdir} started from other weights than the present config.model.weights (digest {recorded['weights'][:8]} then, "
            f"{weights[:8]} now): use the same ones, or another --workdir"
        )
