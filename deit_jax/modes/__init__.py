"""What run.py can do: one function a --mode, each composed of the other rooms."""
