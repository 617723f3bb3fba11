"""What pyproject.toml cannot say beside a search for packages: the files of configs/ are shipped as deit_jax/configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["deit_jax*"]), "deit_jax.configs"],
    package_dir={"deit_jax.configs": "configs"},
)
