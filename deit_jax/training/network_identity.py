"""Which network a run was taught by or began with. A run records it, so that a later start notices another one."""

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
    """A trained network, wherever it is. Fields that nothing tells are None."""

    model: str  # its name
    weights: str  # `weights_digest`
    variables: str | None = None  # "raw" or "ema"
    step: int | None = None  # after which it was saved
    finished: bool | None = None  # whether its training was
    class_names: tuple[str, ...] | None = None  # in the order of its outputs
    image_size: int | None = None  # pixels

    def __str__(self) -> str:
        parts = [self.model, *([f"{self.variables} weights"] if self.variables else [])]
        parts += [] if self.step is None else [f"after step {self.step:,}"]
        return " ".join([*parts, f"(digest {self.weights[:8]})"])

    @classmethod
    def read(cls, recorded: Mapping[str, Any]) -> NetworkIdentity:
        """Of what `dataclasses.asdict` gave, after its way through JSON."""
        names = recorded.get("class_names")
        known = {field.name: recorded.get(field.name) for field in dataclasses.fields(cls)}
        return cls(**known | {"class_names": None if names is None else tuple(names)})


def weights_digest(variables: Mapping[str, Any], without: Collection[str] = ()) -> str:
    """A digest of all arrays of `variables` and their names: 32 hexadecimal digits.

    without: names of parameters or modules in "params", "/"-joined, that do not count.
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
    """The teachers of a run so far, for its record: [{"from_step": 0, "networks": [...]}, ...], the present one last.

    record: of an earlier start, or None. on_change: "stop", or "continue" to go on with another teacher from `step` on. Raises
    ConfigError for another teacher than before.
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
            f"{workdir} was taught by {one}, the teacher is now {other}: give the same teacher by config.teacher.weights, or go "
            "on with the new one by --config.teacher.on_change=continue"
        )
    console.warn(f"another teacher from step {step:,} on: {one} before, {other} now")
    return [*history, now | {"from_step": step}]


def check_initial(workdir: WorkdirLike, record: Mapping[str, Any] | None, weights: str) -> None:
    """Refuse initial weights, by their digest, that are not those that the run in `workdir` began with. Raises ConfigError."""
    recorded = (record or {}).get("resolved", {}).get("initial")
    if recorded and recorded["weights"] != weights:
        raise ConfigError(
            f"{workdir} began with other weights than config.model.weights names now (digest {recorded['weights'][:8]} then, "
            f"{weights[:8]} now): give the same ones, or use another --workdir"
        )
