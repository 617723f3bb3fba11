"""Host-side input: image files in, uint8 batches out. This package does not compute with JAX."""
