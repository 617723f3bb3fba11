"""Names of the parts of a train step in the metadata of the compiled program."""


class Scope:
    """For `jax.named_scope`: they compute nothing. Profiles show them, and aot/parts.py sums the program's costs by them."""

    AUGMENTATION = "augmentation"
    TEACHER = "teacher"
    LOSS = "loss"
    OPTIMIZER = "optimizer"
    EMA = "ema"
    METRICS = "metrics"
