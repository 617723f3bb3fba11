"""Shared by all tests: eight virtual CPU devices, and small parts of the real thing."""

import os

# Before jax is imported. Tests of one device take a mesh of the first.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
