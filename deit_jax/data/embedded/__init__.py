"""A small real data set included in the package; benchmarks/embedded_data.py made it."""
