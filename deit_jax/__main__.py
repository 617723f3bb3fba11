"""`python -m deit_jax` is the same as run.py."""

from deit_jax.main import main

if __name__ == "__main__":
    main()
