"""Devices: the mesh, where arrays lie on it, and the memory of the host."""
