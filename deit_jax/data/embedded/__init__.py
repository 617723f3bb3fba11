"""A small real data set that comes with the package, and the script that made it."""
