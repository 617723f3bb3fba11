"""Runs a command: python run.py --config=configs/quickstart.py --workdir=runs/quickstart (--help lists the flags)."""

import sys

try:
    from deit_jax.main import main
except ModuleNotFoundError as error:
    if str(error.name).partition(".")[0] == "deit_jax":
        raise
    print(
        f"error: {sys.executable} has no package {error.name}: activate the environment in which deit_jax is installed "
        "(after a make command: source .venv/bin/activate), or pip install .",
        file=sys.stderr,
    )
    sys.exit(2)

if __name__ == "__main__":
    main()
