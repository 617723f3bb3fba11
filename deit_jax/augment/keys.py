"""Random keys that depend on a row's place in the global batch only, never on how the batch lies on devices."""

import jax


def fold_in_each(key: jax.Array, numbers: jax.Array) -> jax.Array:
    """One key for each number (a row's position in the global batch, or a mixing group's number).

    Args:
        key: one PRNG key.
        numbers: int32[N].

    Returns:
        keys[N]: `jax.random.fold_in(key, number)` for each number.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
