"""Runs a command: python run.py --config=configs/quickstart.py --workdir=runs/quickstart (--help lists the flags)."""

from deit_jax.main import main

if __name__ == "__main__":
    main()
