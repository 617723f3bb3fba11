"""Gives a run in the test's own process fewer than its eight devices: with tiny models, most of the time is per device."""

import contextlib

import jax
import pytest


@contextlib.contextmanager
def fewer_devices(count=1):
    """JAX shows only the first `count` devices, so that a run's mesh has no others."""
    first = jax.devices()[:count]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: first)
        yield
