"""Finds the packages and ships the files of configs/ as deit_jax/configs: pyproject.toml cannot declare both."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["deit_jax*"]), "deit_jax.configs"],
    package_dir={"deit_jax.configs": "configs"},
)
