"""`python -m deit_jax` is run.py."""

from deit_jax.main import main

if __name__ == "__main__":
    main()
