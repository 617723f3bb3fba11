"""`python -m deit_jax` is run.py."""

from deit_jax.command_line import main

if __name__ == "__main__":
    main()
