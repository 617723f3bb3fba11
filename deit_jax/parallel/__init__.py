"""Devices and processes: the mesh, shardings, and the memory of the host."""
