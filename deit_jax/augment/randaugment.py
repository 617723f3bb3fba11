"""RandAugment (arXiv 1909.13719) as in timm: `rand-m9-mstd0.5-inc1` and similar policies.

Each image gets `num_layers` operations, drawn uniformly with replacement from 15. Each has its own magnitude and is skipped with
probability 1 - `probability`. `plans.apply_operations` applies the drawn operations.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp

from deit_jax.augment.operations import MAX_LEVEL, SKIP, level_to_argument, noisy_level

_SECTION = re.compile(r"(mstd|mmax|inc|m|n|p)(\d+(?:\.\d+)?|\.\d+)")
_INTEGERS = ("m", "n", "inc", "mmax")


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """The parameters of the policy.

    Attributes:
        magnitude: mean level; 10 is the maximum of the paper's scale.
        num_layers: operations per image.
        magnitude_std: standard deviation of the level's noise; infinity: levels are uniform in [0, magnitude].
        increasing: whether every operation gets stronger with the level (timm's inc1).
        probability: that an operation is applied rather than skipped.
        max_level: levels are clipped to [0, max_level].
    """

    magnitude: float = MAX_LEVEL
    num_layers: int = 2
    magnitude_std: float = 0.0
    increasing: bool = False
    probability: float = 0.5
    max_level: float = MAX_LEVEL

    @classmethod
    def parse(cls, text: str) -> "RandAugment":
        """Reads timm's notation: "rand" and any of the sections mN, nN, mstdX, mmaxN, incN, pX, joined by "-".

        As in timm, mstd above 100 means uniform levels. An omitted section keeps its default.

        Raises:
            ValueError: unknown or repeated section, or a number that cannot be read or is out of range; one line.
        """
        head, *sections = text.split("-")
        if head != "rand":
            raise ValueError(f"{text!r}: expected rand-mN-nN-mstdX-mmaxN-incN-pX")
        values: dict[str, float] = {}
        for section in sections:
            match = _SECTION.fullmatch(section)
            if not match:
                raise ValueError(f"{text!r}: cannot read section {section!r}; known: mN, nN, mstdX, mmaxN, incN, pX")
            name, number = match[1], float(match[2])
            if name in values:
                raise ValueError(f"{text!r}: section {name} appears twice")
            if name in _INTEGERS and number != int(number):
                raise ValueError(f"{text!r}: section {section!r} needs a whole number")
            values[name] = number
        for name in ("n", "mmax"):
            if values.get(name, 1) < 1:
                raise ValueError(f"{text!r}: {name} must be at least 1")
        if values.get("p", 0) > 1:
            raise ValueError(f"{text!r}: p must be at most 1")
        std = values.get("mstd", 0.0)
        return cls(
            magnitude=values.get("m", MAX_LEVEL),
            num_layers=int(values.get("n", 2)),
            magnitude_std=math.inf if std > 100 else std,
            increasing=bool(values.get("inc", 0)),
            probability=values.get("p", 0.5),
            max_level=values.get("mmax", MAX_LEVEL),
        )

    def draw(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draws each image's operations.

        keys: keys[B]. Returns (operations int32[B, num_layers], possibly SKIP; arguments float32[B, num_layers]).
        """

        def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            # One call for all numbers: every call compiles another generator.
            choice, chance, noise, sign = jax.random.uniform(key, (4, self.num_layers))
            level = noisy_level(self.magnitude, self.magnitude_std, noise, self.max_level)
            operation = jnp.floor(SKIP * choice).astype(jnp.int32)
            argument = level_to_argument(operation, level, sign < 0.5, self.increasing)
            return jnp.where(chance < self.probability, operation, SKIP), argument

        return jax.vmap(draw)(keys)
