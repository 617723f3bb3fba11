"""Host-side input: image files in, uint8 batches out. Nothing here computes with JAX."""
