"""AutoAugment (arXiv 1805.09501) as in timm: the paper's policy, "original", and the policy of EfficientNet's code, "v0".

A policy has 25 pairs of operations. Each image gets one pair, drawn uniformly. Each operation of the pair has its own probability
and a fixed level. `plans.apply_operations` applies the drawn operations.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.augment.operations import MAX_LEVEL, NUMBER, SKIP, level_to_argument, noisy_level

# Pairs, separated by ";": each operation's name, probability and level.
_ORIGINAL = """
Posterize 0.4 8, Rotate 0.6 9; Solarize 0.6 5, AutoContrast 0.6 5;
Equalize 0.8 8, Equalize 0.6 3; Posterize 0.6 7, Posterize 0.6 6;
Equalize 0.4 7, Solarize 0.2 4; Equalize 0.4 4, Rotate 0.8 8;
Solarize 0.6 3, Equalize 0.6 7; Posterize 0.8 5, Equalize 1 2;
Rotate 0.2 3, Solarize 0.6 8; Equalize 0.6 8, Posterize 0.4 6;
Rotate 0.8 8, Color 0.4 0; Rotate 0.4 9, Equalize 0.6 2;
Equalize 0 7, Equalize 0.8 8; Invert 0.6 4, Equalize 1 8;
Color 0.6 4, Contrast 1 8; Rotate 0.8 8, Color 1 2;
Color 0.8 8, Solarize 0.8 7; Sharpness 0.4 7, Invert 0.6 8;
ShearX 0.6 5, Equalize 1 9; Color 0.4 0, Equalize 0.6 3;
Equalize 0.4 7, Solarize 0.2 4; Solarize 0.6 5, AutoContrast 0.6 5;
Invert 0.6 4, Equalize 1 8; Color 0.6 4, Contrast 1 8;
Equalize 0.8 8, Equalize 0.6 3
"""
_V0 = """
Equalize 0.8 1, ShearY 0.8 4; Color 0.4 9, Equalize 0.6 3;
Color 0.4 1, Rotate 0.6 8; Solarize 0.8 3, Equalize 0.4 7;
Solarize 0.4 2, Solarize 0.6 2; Color 0.2 0, Equalize 0.8 8;
Equalize 0.4 8, SolarizeAdd 0.8 3; ShearX 0.2 9, Rotate 0.6 8;
Color 0.6 1, Equalize 1 2; Invert 0.4 9, Rotate 0.6 0;
Equalize 1 9, ShearY 0.6 3; Color 0.4 7, Equalize 0.6 0;
Posterize 0.4 6, AutoContrast 0.4 7; Solarize 0.6 8, Color 0.6 9;
Solarize 0.2 4, Rotate 0.8 9; Rotate 1 7, TranslateY 0.8 9;
ShearX 0 0, Solarize 0.8 4; ShearY 0.8 0, Color 0.6 4;
Color 1 0, Rotate 0.6 2; Equalize 0.8 4, Equalize 0 8;
Equalize 1 4, AutoContrast 0.6 2; ShearY 0.4 7, SolarizeAdd 0.6 7;
Posterize 0.8 2, Solarize 0.6 10; Solarize 0.6 8, Equalize 0.6 1;
Color 0.8 6, Rotate 0.4 5
"""
# timm's names: the pairs, and how Posterize reads a level ("r": as in the research code).
POLICIES = {
    "original": (_ORIGINAL, "PosterizeOriginal"),
    "originalr": (_ORIGINAL, "PosterizeIncreasing"),
    "v0": (_V0, "Posterize"),
    "v0r": (_V0, "PosterizeIncreasing"),
}


@dataclasses.dataclass(frozen=True)
class AutoAugment:
    """A named policy and the noise of its levels.

    Attributes:
        policy: a key of POLICIES.
        magnitude_std: standard deviation of the level's noise; levels are clipped to [0, 10].
    """

    policy: str = "original"
    magnitude_std: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "AutoAugment":
        """Reads timm's notation: a policy's name, and "-mstdX" if its levels are noisy.

        Raises:
            ValueError: unknown policy or section; one line.
        """
        match = re.fullmatch(r"(\w+)(?:-mstd(\d+(?:\.\d+)?|\.\d+))?", text)
        if not match or match[1] not in POLICIES:
            raise ValueError(f"{text!r}: expected {', '.join(POLICIES)}, or one of them with -mstdX")
        return cls(match[1], float(match[2] or 0))

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the policy's table: operations int32[25, 2], probabilities float32[25, 2], levels float32[25, 2]."""
        table = np.array(re.split(r"[\s,;]+", POLICIES[self.policy][0].strip())).reshape(-1, 2, 3)
        operations = np.vectorize(NUMBER.__getitem__)(table[..., 0])
        return operations.astype(np.int32), table[..., 1].astype(np.float32), table[..., 2].astype(np.float32)

    def draw(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draws each image's operations for keys[B]: (operations int32[B, 2], possibly SKIP; arguments float32[B, 2])."""
        operations, probabilities, levels = map(jnp.asarray, self.pairs())
        posterize = POLICIES[self.policy][1]

        def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            # One call for all numbers: every call compiles another generator.
            pair, *rest = jax.random.uniform(key, (7,))
            chance, noise, sign = jnp.stack(rest).reshape(3, 2)
            pair = jnp.floor(pair * len(operations)).astype(jnp.int32)
            level = noisy_level(levels[pair], self.magnitude_std, noise, MAX_LEVEL)
            argument = level_to_argument(operations[pair], level, sign < 0.5, increasing=False, posterize=posterize)
            return jnp.where(chance < probabilities[pair], operations[pair], SKIP), argument

        return jax.vmap(draw)(keys)
