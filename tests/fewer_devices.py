"""Runs in the test's own process on few of its eight devices: most of what a run of tiny models costs on eight is theirs."""

import contextlib

import jax
import pytest


@contextlib.contextmanager
def fewer_devices(count=1):
    """JAX shows the first so many devices alone, so that a run's mesh has no others."""
    first = jax.devices()[:count]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: first)
        yield
